// The page once a key is known: conversations at the side, turns in the middle, the message field below.
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { Api, ApiError, type KeyInfo, type Said } from "../shared/api";
import { session } from "../shared/kept";
import { Icon } from "../shared/icons";
import { plain } from "../shared/markdown";
import type { Speak } from "../shared/words";
import type { Actions } from "./answer";
import { ask, blank, compare } from "./asking";
import { Composer } from "./composer";
import { type Answer, type Conversation, fresh, load, save, titleOf, type Turn, type Verdict, type Vote } from "./history";
import { TurnView } from "./turn";

interface Props {
  secret: string;
  own: KeyInfo;
  leave: () => void;
  display: ComponentChildren;
  t: Speak;
}

/** What the server is told of a vote; 0 stands for a correction without a thumb. */
function said(vote: Vote | null): Said {
  if (!vote) return { value: null };
  const { value, tags, comment, correction } = vote;
  const words = { ...(comment && { comment }), ...(correction && { correction }), ...(tags.length && { tags }) };
  return (value ? { value, ...words } : words) as Said;
}

export function Chat({ secret, own, leave, display, t }: Props) {
  const api = useMemo(() => new Api(secret, session()), [secret]);
  const conversations = useRef<Conversation[]>(load());
  const [current, setCurrent] = useState<Conversation>(fresh);
  const [, redraw] = useReducer((count: number) => count + 1, 0);
  const [status, setStatus] = useState("");
  const [menu, setMenu] = useState(false);
  const stopping = useRef<AbortController | null>(null);
  const log = useRef<HTMLDivElement>(null);
  const rates = own.roles.includes("feedback") || own.roles.includes("admin");
  const busy = current.turns.some((turn) => turn.answers.some((answer) => answer.state === "streaming"));

  const keep = (): void => {
    if (!save(conversations.current)) setStatus(t("full"));
    redraw(0);
  };
  const drawing = useRef(false);
  const changed = (): void => {
    if (drawing.current) return;
    drawing.current = true;
    requestAnimationFrame(() => {
      drawing.current = false;
      const area = log.current;
      const follows = area && area.scrollHeight - area.scrollTop - area.clientHeight < 120;
      redraw(0);
      if (follows) requestAnimationFrame(() => area.scrollTo(0, area.scrollHeight));
    });
  };
  const failed = (error: unknown): void =>
    setStatus(t("notSaved", error instanceof ApiError ? error.message : t("offline")));

  const run = async (turn: Turn, into: Answer[], against = ""): Promise<void> => {
    const control = new AbortController();
    stopping.current = control;
    setStatus(t("thinking"));
    const index = current.turns.indexOf(turn);
    redraw(0);
    requestAnimationFrame(() => log.current?.scrollTo(0, log.current.scrollHeight));
    await ask(api, current, index, into, against, control.signal, changed);
    setStatus(t(control.signal.aborted ? "stopped" : "finished"));
    keep();
  };
  const send = (text: string, two: boolean, against: string): void => {
    const into = two ? [blank(), blank()] : [blank()];
    const turn: Turn = { ask: text, answers: into, shown: 0, ...(two && { pair: true }) };
    current.turns.push(turn);
    conversations.current = [current, ...conversations.current.filter((one) => one !== current)];
    keep();
    void run(turn, into, against);
  };
  const regenerate = async (turn: Turn): Promise<void> => {
    const old = turn.answers[turn.shown]!;
    const made = blank();
    if (old.id) turn.answers.push(made);
    else turn.answers[turn.shown] = made;
    turn.shown = turn.answers.indexOf(made);
    await run(turn, [made]);
    if (rates && old.id && made.id)
      await api
        .post("/v1/events", { response_id: old.id, type: "regenerate", new_response_id: made.id })
        .catch(() => undefined); // an event is a hint: losing one harms nobody
  };
  const rate = async (answer: Answer, vote: Vote | null): Promise<boolean> => {
    try {
      if (rates) await api.vote(answer.id, said(vote));
      else answer.token = await api.voteByToken(answer.token ?? "", said(vote));
    } catch (error) {
      failed(error);
      return false;
    }
    if (vote) answer.vote = vote;
    else delete answer.vote;
    setStatus(t(vote ? "saved" : "retracted"));
    keep();
    return true;
  };
  const copy = (answer: Answer): void => {
    void navigator.clipboard.writeText(answer.text).then(() => setStatus(t("copied")));
    if (rates && answer.id) void api.post("/v1/events", { response_id: answer.id, type: "copy" }).catch(() => undefined);
  };
  const prefer = async (turn: Turn, verdict: Verdict): Promise<void> => {
    try {
      await compare(api, turn, verdict);
      setStatus(t("saved"));
    } catch (error) {
      failed(error);
    }
    keep();
  };
  const open = (conversation: Conversation): void => {
    stopping.current?.abort();
    setMenu(false);
    setCurrent(conversation);
    setStatus("");
  };
  const drop = (conversation: Conversation): void => {
    conversations.current = conversations.current.filter((one) => one !== conversation);
    if (conversation === current) open(fresh());
    keep();
  };

  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.key !== "Escape") return;
      if (menu) setMenu(false);
      else stopping.current?.abort();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [menu]);

  const actionsOf = (turn: Turn): Actions => {
    const last = turn === current.turns.at(-1) && !busy;
    return {
      rate,
      copy,
      mayRate: (answer) => rates || Boolean(answer.token),
      ...(last && { regenerate: () => void regenerate(turn) }),
    };
  };
  return (
    <div class="page">
      <a class="skip" href="#message">
        {t("skip")}
      </a>
      <header>
        <Icon class="menu" name={t("menu")} sign="menu" expanded={menu} onClick={() => setMenu(!menu)} />
        <h1>{t("title")}</h1>
        <button type="button" onClick={() => open(fresh())}>
          {t("newChat")}
        </button>
      </header>
      <nav class={menu ? "open" : ""} aria-label={t("history")}>
        <h2>{t("history")}</h2>
        <p class="hint">{t("historyEmpty")}</p>
        <ul>
          {conversations.current.map((one) => (
            <li key={one.id}>
              <button type="button" class="title" aria-current={one === current} onClick={() => open(one)}>
                {plain(titleOf(one))}
              </button>
              <Icon name={t("remove", plain(titleOf(one)))} sign="remove" onClick={() => drop(one)} />
            </li>
          ))}
        </ul>
        {display}
        <button type="button" onClick={leave}>
          {t("leave")}
        </button>
      </nav>
      <main>
        <div class="log" ref={log} tabIndex={0} role="region" aria-label={t("title")}>
          {current.turns.length === 0 && (
            <div class="welcome">
              <p>{t("welcome")}</p>
              <p class="hint">{t("welcomeHelp")}</p>
            </div>
          )}
          {current.turns.map((turn, index) => (
            <TurnView
              key={`${current.id}-${index}`}
              turn={turn}
              actions={actionsOf(turn)}
              show={(shown) => {
                turn.shown = shown;
                keep();
              }}
              prefer={(verdict) => void prefer(turn, verdict)}
              t={t}
            />
          ))}
        </div>
        <Composer
          api={api}
          busy={busy}
          mayCompare={rates}
          send={send}
          stop={() => stopping.current?.abort()}
          status={status}
          t={t}
        />
      </main>
    </div>
  );
}
