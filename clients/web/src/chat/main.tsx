import { render } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { KeyInfo } from "../shared/api";
import { keepKey, keepLanguage, keepTheme, keptKey, keptLanguage, keptTheme, type Theme } from "../shared/kept";
import "../shared/style.css";
import { LANGUAGES, type Language, type Speak, speaker } from "../shared/words";
import { Chat } from "./chat";
import "./chat.css";
import { admitted, Gate } from "./gate";

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

function App() {
  const [theme, setTheme] = useState(keptTheme());
  const [language, setLanguage] = useState(keptLanguage());
  const [entered, setEntered] = useState<{ key: string; own: KeyInfo } | null>(null);
  const [asking, setAsking] = useState(keptKey() === null);
  const t = useMemo(() => speaker(language), [language]);
  useEffect(() => {
    document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
    document.documentElement.dataset["theme"] = theme;
    document.title = t("title");
  }, [language, theme, t]);
  useEffect(() => {
    const key = keptKey();
    if (key === null) return;
    void admitted(key, t).then((own) => (typeof own === "string" ? setAsking(true) : setEntered({ key, own })));
  }, []);
  const display = (
    <Display
      theme={theme}
      language={language}
      t={t}
      set={(newTheme, newLanguage) => {
        keepTheme(newTheme);
        keepLanguage(newLanguage);
        setTheme(newTheme);
        setLanguage(newLanguage);
      }}
    />
  );
  const enter = (key: string, own: KeyInfo, remember: boolean): void => {
    keepKey(key, remember);
    setEntered({ key, own });
  };
  const leave = (): void => {
    keepKey(null);
    setEntered(null);
    setAsking(true);
  };
  if (entered) return <Chat secret={entered.key} own={entered.own} leave={leave} display={display} t={t} />;
  return (
    <div class="outside">
      {asking && <Gate enter={enter} t={t} />}
      <footer>{display}</footer>
    </div>
  );
}

render(<App />, document.getElementById("app")!);
