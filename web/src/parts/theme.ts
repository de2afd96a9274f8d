/** Light or dark: the system's choice, or the person's. */
import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

const THEME = "refine.theme";

export const theme = signal<Theme>((localStorage.getItem(THEME) as Theme | null) ?? "auto");

/** Let the document follow the theme from now on; its colours do by `light-dark()`. */
export function applyTheme(): void {
  effect(() => {
    document.documentElement.dataset.theme = theme.value;
    if (theme.value === "auto") localStorage.removeItem(THEME);
    else localStorage.setItem(THEME, theme.value);
  });
}
