/** The frame around every view: where one is, which model answers, the key and the theme. */
import { useEffect } from "preact/hooks";
import { KeyDialog } from "../parts/key_dialog";
import { route, type Route } from "../parts/route";
import { keepModel, model } from "../parts/served";
import { theme, type Theme } from "../parts/theme";
import { Adaptations } from "./adaptations";
import { Compose } from "./compose";
import { Operations } from "./operations";
import { RunView } from "./run";

const PLACES: readonly (readonly [string, string, readonly Route["view"][]])[] = [
  ["#/", "Run", ["compose", "run"]],
  ["#/adaptations", "Adaptations", ["adaptations"]],
  ["#/operations", "Operations", ["operations"]],
];

export function Page() {
  useEffect(keepModel, []);
  const { view } = route.value;
  return (
    <>
      <a class="skip" href="#main" onClick={focusMain}>
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href="#/">
          <img src="./ui/icon.svg" alt="" width="22" height="22" /> refine-server
        </a>
        <nav aria-label="Views">
          {PLACES.map(([href, name, views]) => (
            <a key={href} href={href} aria-current={views.includes(view) ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <span class="served">
          {model.value === null ? "no model yet" : <code>{model.value}</code>}
        </span>
        <ThemeSwitch />
        <KeyDialog />
      </header>
      <main id="main" tabIndex={-1}>
        <View />
      </main>
    </>
  );
}

function View() {
  const { value } = route;
  switch (value.view) {
    case "run":
      return <RunView key={value.id} id={value.id} file={value.file} query={value.query} />;
    case "adaptations":
      return <Adaptations />;
    case "operations":
      return <Operations />;
    case "compose":
      return <Compose />;
  }
}

const THEMES: Readonly<Record<Theme, string>> = { auto: "Auto", light: "Light", dark: "Dark" };

function ThemeSwitch() {
  return (
    <label class="quiet">
      <span class="hidden">Colours</span>
      <select
        value={theme.value}
        onChange={(event) => (theme.value = event.currentTarget.value as Theme)}
      >
        {Object.entries(THEMES).map(([value, name]) => (
          <option key={value} value={value}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

/** The fragment is the page's address, so the link cannot be one. */
function focusMain(event: Event): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}
