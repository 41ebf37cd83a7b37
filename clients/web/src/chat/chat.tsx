// The page once a key is known: conversations at the side, turns in the middle, the message field below.
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { Api, type KeyInfo } from "../shared/api";
import { session } from "../shared/kept";
import { Icon } from "../shared/icons";
import { plain } from "../shared/plain";
import type { Speak } from "../shared/words";
import type { Actions } from "./answer";
import { Composer } from "./composer";
import { type Conversations, useConversations } from "./conversations";
import { type Deeds, useDeeds } from "./deeds";
import { type Conversation, fresh, titleOf, type Turn } from "./history";
import { TurnView } from "./turn";

interface Props {
  secret: string;
  own: KeyInfo;
  leave: () => void;
  display: ComponentChildren;
  t: Speak;
}

export function Chat({ secret, own, leave, display, t }: Props) {
  const api = useMemo(() => new Api(secret, session()), [secret]);
  const [status, setStatus] = useState("");
  const [menu, setMenu] = useState(false);
  const rates = own.roles.includes("feedback") || own.roles.includes("admin");
  const kept = useConversations(() => setStatus(t("full")));
  const deeds = useDeeds({ api, rates, kept, say: setStatus, t });
  const busy = kept.current.turns.some((turn) => turn.answers.some((answer) => answer.state === "streaming"));
  const open = (conversation: Conversation): void => {
    deeds.stop();
    setMenu(false);
    kept.open(conversation);
    setStatus("");
  };
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.key !== "Escape") return;
      if (menu) setMenu(false);
      else deeds.stop();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [menu]);
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
      <Side kept={kept} isOpen={menu} open={open} t={t}>
        {display}
        <button type="button" onClick={leave}>
          {t("leave")}
        </button>
      </Side>
      <main>
        <Log kept={kept} deeds={deeds} rates={rates} busy={busy} t={t} />
        <Composer api={api} busy={busy} mayCompare={rates} send={deeds.send} stop={deeds.stop} status={status} t={t} />
      </main>
    </div>
  );
}

interface SideProps {
  kept: Conversations;
  isOpen: boolean;
  open: (conversation: Conversation) => void;
  children: ComponentChildren;
  t: Speak;
}

function Side({ kept, isOpen, open, children, t }: SideProps) {
  const drop = (conversation: Conversation): void => {
    if (conversation === kept.current) open(fresh());
    kept.drop(conversation);
  };
  return (
    <nav class={isOpen ? "open" : ""} aria-label={t("history")}>
      <h2>{t("history")}</h2>
      <p class="hint">{t("historyEmpty")}</p>
      <ul>
        {kept.all.map((one) => (
          <li key={one.id}>
            <button type="button" class="title" aria-current={one === kept.current} onClick={() => open(one)}>
              {plain(titleOf(one))}
            </button>
            <Icon name={t("remove", plain(titleOf(one)))} sign="remove" onClick={() => drop(one)} />
          </li>
        ))}
      </ul>
      {children}
    </nav>
  );
}

function Log(props: { kept: Conversations; deeds: Deeds; rates: boolean; busy: boolean; t: Speak }) {
  const { kept, deeds, rates, busy, t } = props;
  const { current } = kept;
  const actionsOf = (turn: Turn): Actions => {
    const last = turn === current.turns.at(-1) && !busy;
    return {
      rate: deeds.rate,
      copy: deeds.copy,
      mayRate: (answer) => rates || Boolean(answer.token),
      ...(last && { regenerate: () => void deeds.regenerate(turn) }),
    };
  };
  return (
    <div class="log" ref={kept.log} tabIndex={0} role="region" aria-label={t("title")}>
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
            kept.keep();
          }}
          prefer={(verdict) => void deeds.prefer(turn, verdict)}
          t={t}
        />
      ))}
    </div>
  );
}
