// The console once a key is known: views at the side, the chosen one in the middle, live state above.
import { type ComponentChildren, type ComponentType } from "preact";
import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { Api } from "../shared/api";
import { Icon } from "../shared/icons";
import { session } from "../shared/kept";
import type { Inside } from "../shared/shell";
import { Answers } from "./answers";
import { Audit } from "./audit";
import { type Desk, DeskContext, wordsOf } from "./desk";
import { Confirm, type Question } from "./dialog";
import { Keys } from "./keys";
import { Learning } from "./learning";
import { type Connection, useLive } from "./live";
import { RolloutView } from "./rollout";
import { Training } from "./training";
import { Versions } from "./versions";
import { type Speak, speakerOf } from "./words";

const VIEWS: { name: "learning" | "versions" | "rollouts" | "training" | "answers" | "keys" | "audit"; role?: string }[] = [
  { name: "learning" },
  { name: "versions" },
  { name: "rollouts" },
  { name: "training" },
  { name: "answers" },
  { name: "keys", role: "admin" },
  { name: "audit" },
];
/** How long what was done is told. */
const STATUS_MS = 10_000;

type View = (typeof VIEWS)[number]["name"];

const SHOWN: Record<View, ComponentType<{ rest: string }>> = {
  learning: Learning,
  versions: Versions,
  rollouts: ({ rest }) => <RolloutView candidate={rest} key={rest} />,
  training: Training,
  answers: Answers,
  keys: Keys,
  audit: Audit,
};

/** The view that the address names, and what stands behind it: `#rollouts/v3`. */
function useAddress(): [string, string] {
  const read = (): string => location.hash.slice(1);
  const [hash, setHash] = useState(read);
  useEffect(() => {
    const again = (): void => setHash(read());
    addEventListener("hashchange", again);
    return () => removeEventListener("hashchange", again);
  }, []);
  const [view = "", rest = ""] = hash.split("/");
  return [view, rest];
}

export function Console({ secret, own, leave, display, language }: Inside) {
  const api = useMemo(() => new Api(secret, session()), [secret]);
  const t = useMemo(() => speakerOf(language), [language]);
  const may = useCallback((role: string) => own.roles.includes(role) || own.roles.includes("admin"), [own]);
  const { overview, connection } = useLive(api, leave);
  const [status, say] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => say(""), STATUS_MS);
    return () => clearTimeout(timer);
  }, [status]);
  const [question, ask] = useState<Question | null>(null);
  const views = VIEWS.filter((view) => !view.role || may(view.role));
  const [named, rest] = useAddress();
  const view = views.find((one) => one.name === named)?.name ?? "learning";
  const View = SHOWN[view];
  const desk: Desk = { api, t, language, overview, may, say, ask };
  useEffect(() => say(""), [view]);
  return (
    <DeskContext.Provider value={desk}>
      <Frame t={t} view={view} views={views.map((one) => one.name)} connection={connection} leave={leave} display={display}>
        <h2 class="view">{t(view)}</h2>
        <View rest={rest} />
      </Frame>
      <p class="status" role="status">
        {status}
      </p>
      {question && <Confirm question={question} close={() => ask(null)} words={(error) => wordsOf(error, t)} t={t} />}
    </DeskContext.Provider>
  );
}

interface FrameProps {
  t: Speak;
  view: View;
  views: View[];
  connection: Connection;
  leave: () => void;
  display: ComponentChildren;
  children: ComponentChildren;
}

function Frame({ t, view, views, connection, leave, display, children }: FrameProps) {
  const [menu, setMenu] = useState(false);
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => void (event.key === "Escape" && setMenu(false));
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => setMenu(false), [view]);
  return (
    <div class="page">
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
        {t("skip")}
      </a>
      <header>
        <Icon class="menu" name={t("menu")} sign="menu" expanded={menu} onClick={() => setMenu(!menu)} />
        <h1>{t("title")}</h1>
        <p class={`connection ${connection}`}>{t(connection)}</p>
      </header>
      <nav class={menu ? "open" : ""} aria-label={t("views")}>
        <ul>
          {views.map((one) => (
            <li key={one}>
              <a href={`#${one}`} onClick={() => setMenu(false)} {...(one === view ? { "aria-current": "page" as const } : {})}>
                {t(one)}
              </a>
            </li>
          ))}
        </ul>
        {display}
        <button type="button" onClick={leave}>
          {t("leave")}
        </button>
      </nav>
      <main id="main" tabIndex={-1}>
        {children}
      </main>
    </div>
  );
}
