// What every view needs at hand: the API, the words, the present state, who may what; and questions to the API.
import { createContext } from "preact";
import { useContext, useEffect, useRef, useState } from "preact/hooks";
import { type Api, ApiError } from "../shared/api";
import type { Language } from "../shared/words";
import { further, type Overview, type Page } from "./data";
import type { Question } from "./dialog";
import type { Speak } from "./words";

export interface Desk {
  api: Api;
  t: Speak;
  language: Language;
  overview: Overview | null;
  /** Whether this key has a role; an admin has all. */
  may: (role: string) => boolean;
  /** Tell something in the status line, which is read aloud. */
  say: (text: string) => void;
  /** Put a question that must be answered with a reason. */
  ask: (question: Question) => void;
}

export const DeskContext = createContext<Desk | null>(null);

export function useDesk(): Desk {
  const desk = useContext(DeskContext);
  if (!desk) throw new Error("there is no desk here");
  return desk;
}

/** An error in the server's own words. */
export const wordsOf = (error: unknown, t: Speak): string => (error instanceof ApiError ? error.message : t("offline"));

export interface Asked<T> {
  data: T | null;
  problem: string;
  again: () => void;
}

/** What the API says under an address; asked again when the address or `mark` changes. null asks for nothing. */
export function useAsk<T>(path: string | null, mark?: unknown): Asked<T> {
  const { api, t } = useDesk();
  const [seen, setSeen] = useState<{ path: string | null; data: T | null }>({ path: null, data: null });
  const [problem, setProblem] = useState("");
  const [count, setCount] = useState(0);
  useEffect(() => {
    if (path === null) return;
    let wanted = true;
    api
      .get<T>(path)
      .then((data) => wanted && (setSeen({ path, data }), setProblem("")))
      .catch((error: unknown) => wanted && setProblem(wordsOf(error, t)));
    return () => void (wanted = false);
  }, [path, mark, count]);
  return { data: seen.path === path ? seen.data : null, problem, again: () => setCount(count + 1) };
}

export interface Listed<T> {
  items: T[] | null;
  problem: string;
  /** Newer ones came while more than one page was shown. */
  isStale: boolean;
  again: () => void;
  more: (() => void) | null;
}

/** A list of the API, page by page. When `mark` moves, the first page is asked for again unless more is shown or on its way. */
export function useList<T>(path: string | null, mark?: unknown): Listed<T> {
  const { api, t } = useDesk();
  const [items, setItems] = useState<T[] | null>(null);
  const [next, setNext] = useState<string | null>(null);
  const [pages, setPages] = useState(0);
  const [isStale, setStale] = useState(false);
  const [problem, setProblem] = useState("");
  const asked = useRef(0);
  const underway = useRef<"first" | "more" | null>(null);
  const load = async (after: string | null): Promise<void> => {
    if (path === null) return;
    if (after && underway.current === "first") setStale(true); // what was new would have come with it
    underway.current = after ? "more" : "first";
    const turn = ++asked.current;
    try {
      const page = await api.get<Page<T>>(after ? further(path, { after }) : path);
      if (turn !== asked.current) return; // another question came after this one
      setItems((was) => (after ? [...(was ?? []), ...page.data] : page.data));
      setNext(page.has_more ? (page.next ?? null) : null);
      setPages((was) => (after ? was + 1 : 1));
      setStale((was) => was && after !== null);
      setProblem("");
    } catch (error) {
      if (turn === asked.current) setProblem(wordsOf(error, t));
    } finally {
      if (turn === asked.current) underway.current = null;
    }
  };
  useEffect(() => {
    setItems(null);
    void load(null);
  }, [path]);
  const isNew = useRef(true);
  useEffect(() => {
    if (isNew.current) return void (isNew.current = false); // the first page is on its way already
    if (pages > 1 || underway.current === "more") setStale(true); // whoever asked for more gets it
    else void load(null);
  }, [mark]);
  return { items, problem, isStale, again: () => void load(null), more: next ? () => void load(next) : null };
}
