import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

export default defineConfig({
  base: "./", // the server may stand behind a proxy, under a path of its own
  resolve: {
    alias: { "refine-server-client": path("../clients/typescript/src/index.ts") },
    dedupe: ["openapi-fetch"], // the client's sources lie outside this folder; take the page's copy
  },
  build: {
    target: "es2022",
    cssTarget: ["chrome123", "firefox121", "safari17.5"], // they know light-dark()
    outDir: path("../server/ui/static"),
    emptyOutDir: true,
    assetsDir: "ui",
    modulePreload: false,
    rolldownOptions: {
      output: {
        // Names without a hash: the built files are committed, and the server has browsers revalidate.
        entryFileNames: "ui/page.js",
        chunkFileNames: "ui/[name].js",
        assetFileNames: "ui/page[extname]",
      },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000", "/metrics": "http://127.0.0.1:8000" } },
  test: { include: ["test/**/*.test.ts"] },
});
