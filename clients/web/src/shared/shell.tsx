// What both pages stand in: the key, the language, the colours.
import { type ComponentChildren, render } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { KeyInfo } from "./api";
import { admitted, type Entrance, Gate } from "./gate";
import { keepKey, keepLanguage, keepTheme, keptKey, keptLanguage, keptTheme, type Theme } from "./kept";
import "./style.css";
import { LANGUAGES, type Language, type Speak, speaker } from "./words";

/** What a page is given once a key is known. */
export interface Inside {
  secret: string;
  own: KeyInfo;
  leave: () => void;
  display: ComponentChildren;
  language: Language;
  t: Speak;
}

interface Page {
  entrance: Entrance;
  title: (language: Language) => string;
  inside: (given: Inside) => ComponentChildren;
}

function Display(props: { theme: Theme; language: Language; set: (t: Theme, l: Language) => void; t: Speak }) {
  const { theme, language, set, t } = props;
  return (
    <div class="display" role="group" aria-label={t("settings")}>
      <label>
        {t("language")}{" "}
        <select value={language} onChange={(event) => set(theme, event.currentTarget.value as Language)}>
          {Object.entries(LANGUAGES).map(([code, name]) => (
            <option key={code} value={code}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <label>
        {t("theme")}{" "}
        <select value={theme} onChange={(event) => set(event.currentTarget.value as Theme, language)}>
          {(["auto", "light", "dark"] as const).map((one) => (
            <option key={one} value={one}>
              {t(one)}
            </option>
          ))}
        </select>
      </label>
    </div>
  );
}

/** The choices of display, as they are kept, and applied to the document. */
function useDisplay(title: Page["title"]): { language: Language; t: Speak; display: ComponentChildren } {
  const [theme, setTheme] = useState(keptTheme());
  const [language, setLanguage] = useState(keptLanguage());
  const t = useMemo(() => speaker(language), [language]);
  useEffect(() => {
    document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
    document.documentElement.dataset["theme"] = theme;
    document.title = title(language);
  }, [language, theme]);
  const set = (newTheme: Theme, newLanguage: Language): void => {
    keepTheme(newTheme);
    keepLanguage(newLanguage);
    setTheme(newTheme);
    setLanguage(newLanguage);
  };
  return { language, t, display: <Display theme={theme} language={language} t={t} set={set} /> };
}

function Shell({ page }: { page: Page }) {
  const { language, t, display } = useDisplay(page.title);
  const [entered, setEntered] = useState<{ key: string; own: KeyInfo } | null>(null);
  const [asking, setAsking] = useState(keptKey() === null);
  useEffect(() => {
    const key = keptKey();
    if (key === null) return;
    void admitted(key, page.entrance, t).then((own) =>
      typeof own === "string" ? setAsking(true) : setEntered({ key, own }),
    );
  }, []);
  const enter = (key: string, own: KeyInfo, remember: boolean): void => {
    keepKey(key, remember);
    setEntered({ key, own });
  };
  const leave = (): void => {
    keepKey(null);
    setEntered(null);
    setAsking(true);
  };
  if (entered) return <>{page.inside({ secret: entered.key, own: entered.own, leave, display, language, t })}</>;
  return (
    <div class="outside">
      {asking && <Gate entrance={page.entrance} enter={enter} t={t} />}
      <footer>{display}</footer>
    </div>
  );
}

/** Begin. */
export function start(page: Page): void {
  render(<Shell page={page} />, document.getElementById("app")!);
}
