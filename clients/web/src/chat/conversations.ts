// The conversations of this browser, and the one that is open.
import { type RefObject } from "preact";
import { useReducer, useRef, useState } from "preact/hooks";
import { type Conversation, fresh, load, save } from "./history";

export interface Conversations {
  all: Conversation[];
  current: Conversation;
  /** Show another one, or an empty one. */
  open: (conversation: Conversation) => void;
  drop: (conversation: Conversation) => void;
  /** The current one comes first from now on. */
  raise: () => void;
  /** Keep all in the browser, and draw. */
  keep: () => void;
  redraw: () => void;
  /** Draw with the next frame, once, and stay at the end where the reader is at the end. */
  changed: () => void;
  /** What scrolls. */
  log: RefObject<HTMLDivElement | null>;
  toEnd: () => void;
}

/** `full` is called where the browser has no room for all. */
export function useConversations(full: () => void): Conversations {
  const all = useRef<Conversation[]>(load());
  const [current, setCurrent] = useState<Conversation>(fresh);
  const [, count] = useReducer((times: number) => times + 1, 0);
  const drawing = useRef(false);
  const log = useRef<HTMLDivElement>(null);
  const redraw = (): void => count(0);
  const keep = (): void => {
    if (!save(all.current)) full();
    redraw();
  };
  const toEnd = (): void => void requestAnimationFrame(() => log.current?.scrollTo(0, log.current.scrollHeight));
  const changed = (): void => {
    if (drawing.current) return;
    drawing.current = true;
    requestAnimationFrame(() => {
      drawing.current = false;
      const area = log.current;
      const follows = area && area.scrollHeight - area.scrollTop - area.clientHeight < 120;
      redraw();
      if (follows) toEnd();
    });
  };
  const drop = (conversation: Conversation): void => {
    all.current = all.current.filter((one) => one !== conversation);
    keep();
  };
  const raise = (): void => {
    all.current = [current, ...all.current.filter((one) => one !== current)];
    keep();
  };
  return { all: all.current, current, open: setCurrent, drop, raise, keep, redraw, changed, log, toEnd };
}
