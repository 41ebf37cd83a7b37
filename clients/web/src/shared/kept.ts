// What the browser keeps: the key, the display, and a random name for this browser's person.
import type { Language } from "./words";

export type Theme = "auto" | "light" | "dark";

function read(store: Storage, name: string): string | null {
  try {
    return store.getItem(`plaudit.${name}`);
  } catch {
    return null; // storage is switched off: nothing is remembered
  }
}

function write(store: Storage, name: string, value: string | null): void {
  try {
    if (value === null) store.removeItem(`plaudit.${name}`);
    else store.setItem(`plaudit.${name}`, value);
  } catch {
    // storage is switched off or full: nothing is remembered
  }
}

export function keptKey(): string | null {
  return read(sessionStorage, "key") ?? read(localStorage, "key");
}

export function keepKey(key: string | null, remember = false): void {
  write(sessionStorage, "key", remember ? null : key);
  write(localStorage, "key", remember ? key : null);
}

export function keptLanguage(): Language {
  const kept = read(localStorage, "language") ?? navigator.language;
  return kept.startsWith("zh") ? "zh" : "en";
}

export function keptTheme(): Theme {
  const kept = read(localStorage, "theme");
  return kept === "light" || kept === "dark" ? kept : "auto";
}

export const keepLanguage = (language: Language): void => write(localStorage, "language", language);
export const keepTheme = (theme: Theme): void => write(localStorage, "theme", theme);

/** Stands for the person at this browser, so that their version does not change and their votes are their own. */
export function session(): string {
  const kept = read(localStorage, "session");
  if (kept) return kept;
  const made = `web-${crypto.randomUUID()}`;
  write(localStorage, "session", made);
  return made;
}
