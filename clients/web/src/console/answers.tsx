// Answers and what was said of them: narrowed, page by page, and as files.
import { useState } from "preact/hooks";
import type { Api } from "../shared/api";
import { Drawing } from "../shared/icons";
import { plain } from "../shared/plain";
import { address, type Completion, type Feedback, further, type Page, type Version } from "./data";
import { useAsk, useDesk, useList, wordsOf } from "./desk";
import { type Cell, jsonLines, save, saveCsv } from "./export";
import { Ending, figure, Problem, Said, Table, When } from "./parts";
import { named, type Word } from "./words";

/** Rows of a file at most: the browser holds them all. `plaudit export` has no such bound. */
const MAX_ROWS = 10_000;

type Filters = Record<string, string>;

export function Answers() {
  const { t } = useDesk();
  const [tab, setTab] = useState<"tabAnswers" | "tabVotes">("tabAnswers");
  const [about, setAbout] = useState("");
  const show = (id: string): void => (setAbout(id), setTab("tabVotes"));
  return (
    <>
      <div class="buttons" role="group" aria-label={t("answers")}>
        {(["tabAnswers", "tabVotes"] as const).map((one) => (
          <button key={one} type="button" aria-pressed={tab === one} onClick={() => (setAbout(""), setTab(one))}>
            {t(one)}
          </button>
        ))}
      </div>
      {tab === "tabAnswers" ? <Completions votesOf={show} /> : <Votes about={about} key={about} />}
    </>
  );
}

interface Field {
  name: string;
  word: Word;
  options?: string[];
  isTime?: boolean;
}

/** Fields that narrow a list. They count once "Show" is pressed. */
function Narrow(props: { fields: Field[]; begin: Filters; apply: (filters: Filters) => void }) {
  const { t } = useDesk();
  const [given, setGiven] = useState<Filters>(props.begin);
  return (
    <form
      class="card"
      aria-label={t("filters")}
      onSubmit={(event) => {
        event.preventDefault();
        props.apply(given);
      }}
    >
      <div class="filters">
        {props.fields.map(({ name, word, options, isTime }) => (
          <label class="field" key={name}>
            {t(word)}
            {options ? (
              <select value={given[name] ?? ""} onChange={(event) => setGiven({ ...given, [name]: event.currentTarget.value })}>
                {options.map((one) => (
                  <option key={one} value={one}>
                    {name === "vote" ? named(t, "vote", one) : one || t("anyVersion")}
                  </option>
                ))}
              </select>
            ) : (
              <input
                {...(isTime ? { type: "datetime-local" as const } : { type: "text" as const })}
                value={given[name] ?? ""}
                onInput={(event) => setGiven({ ...given, [name]: event.currentTarget.value })}
              />
            )}
          </label>
        ))}
      </div>
      <div class="buttons">
        <button type="submit" class="main">
          {t("apply")}
        </button>
        <button type="button" onClick={() => (setGiven({}), props.apply({}))}>
          {t("clear")}
        </button>
      </div>
    </form>
  );
}

/** The query that filters stand for. A local time becomes UTC; `a=b` becomes `metadata[a]=b`. */
function query(filters: Filters): Filters {
  const { since, metadata, ...rest } = filters;
  const made: Filters = { ...rest };
  if (since) made["since"] = new Date(since).toISOString();
  const [, name, value] = metadata?.match(/^\s*([^=]+?)\s*=(.*)$/) ?? [];
  if (name !== undefined) made[`metadata[${name}]`] = value!.trim();
  return made;
}

function useVersions(): string[] {
  const { overview } = useDesk();
  const list = useAsk<Page<Version>>("/v1/versions?limit=100", JSON.stringify(overview?.counts.versions));
  return ["", ...(list.data?.data ?? []).map((version) => version.name)];
}

/** Every row behind an address, page by page, up to the bound; and whether there were more. */
async function all<T>(api: Api, path: string, told: (count: number) => void): Promise<[T[], boolean]> {
  const rows: T[] = [];
  let after: string | null | undefined;
  do {
    const page: Page<T> = await api.get<Page<T>>(further(path, { limit: 100, ...(after && { after }) }));
    rows.push(...page.data);
    after = page.has_more ? page.next : null;
    told(rows.length);
  } while (after && rows.length < MAX_ROWS);
  return [rows, Boolean(after)];
}

/** Buttons that save what a list shows, all pages of it. */
export function Exports<T>(props: { path: string; name: string; columns: string[]; row: (of: T) => Cell[] }) {
  const { t, api, say } = useDesk();
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState("");
  const run = async (asCsv: boolean): Promise<void> => {
    setBusy(true);
    setProblem("");
    try {
      const [rows, isCut] = await all<T>(api, props.path, (count) => say(t("exporting", count)));
      if (asCsv) saveCsv(props.name, props.columns, rows.map(props.row));
      else save(`${props.name}.jsonl`, jsonLines(rows), "application/jsonl");
      say(t(isCut ? "exportCut" : "exported", rows.length));
    } catch (error) {
      setProblem(wordsOf(error, t));
    }
    setBusy(false);
  };
  return (
    <div class="buttons">
      <button type="button" disabled={busy} onClick={() => void run(true)}>
        {t("exportCsv")}
      </button>
      <button type="button" disabled={busy} onClick={() => void run(false)}>
        {t("exportJson")}
      </button>
      <Problem text={problem} />
    </div>
  );
}

const textOf = (content: unknown): string => {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((part: { text?: unknown }) => (typeof part.text === "string" ? part.text : "")).join("\n");
};
const asked = (row: Completion): string => textOf((row.messages.at(-1) as { content?: unknown } | undefined)?.content);

function Completions({ votesOf }: { votesOf: (id: string) => void }) {
  const { t, overview } = useDesk();
  const [filters, setFilters] = useState<Filters>({});
  const path = address("/v1/chat/completions", query(filters));
  const list = useList<Completion>(path, `${overview?.newest.answer} ${overview?.newest.feedback_at}`);
  const fields: Field[] = [
    { name: "version", word: "fieldVersion", options: useVersions() },
    { name: "user", word: "user" },
    { name: "since", word: "since", isTime: true },
    { name: "metadata", word: "metadata" },
  ];
  return (
    <section aria-label={t("tabAnswers")}>
      <Narrow fields={fields} begin={{}} apply={setFilters} />
      <Exports<Completion>
        path={path}
        name="plaudit-answers"
        columns={["id", "created_at", "version", "arm", "status", "end_user", "train_consent", "feedback_count", "question", "answer"]}
        row={(one) => [one.id, one.created_at, one.version, one.arm, one.status, one.end_user, one.train_consent, one.feedback_count, asked(one), one.content]}
      />
      <ul class="rows" aria-label={t("tabAnswers")}>
        {list.items?.map((one) => (
          <li key={one.id} class="card">
            <Answer row={one} votesOf={votesOf} />
          </li>
        ))}
      </ul>
      <Ending list={list} />
    </section>
  );
}

function Answer({ row, votesOf }: { row: Completion; votesOf: (id: string) => void }) {
  const { t } = useDesk();
  return (
    <>
      <p class="hint">
        <When at={row.created_at} /> · <strong>{row.version}</strong> · {t("armOf", plain(row.arm))} ·{" "}
        {t("tokens", row.completion_tokens)} · {t(row.train_consent ? "consent" : "noConsent")} · {row.status}
      </p>
      <h3 class="label">{t("question")}</h3>
      <Said text={asked(row)} class="cut" />
      <h3 class="label">{t("answer")}</h3>
      <Said text={row.content} />
      {row.messages.length > 1 && (
        <details>
          <summary>{t("whole")}</summary>
          {row.messages.map((message, index) => (
            <div key={index}>
              <h4 class="label">{plain(String(message["role"] ?? ""))}</h4>
              <Said text={textOf(message["content"])} />
            </div>
          ))}
        </details>
      )}
      <p class="hint">
        <code>{row.id}</code>{" "}
        {(row.feedback_count ?? 0) > 0 && (
          <button type="button" onClick={() => votesOf(row.id)}>
            {t("itsVotes")} ({row.feedback_count})
          </button>
        )}
      </p>
    </>
  );
}

function Votes({ about }: { about: string }) {
  const { t, overview } = useDesk();
  const [filters, setFilters] = useState<Filters>(about ? { response_id: about } : {});
  const path = address("/v1/feedback", query(filters));
  const list = useList<Feedback>(path, overview?.newest.feedback_at);
  const fields: Field[] = [
    { name: "version", word: "fieldVersion", options: useVersions() },
    { name: "vote", word: "vote", options: ["", "up", "down", "none"] },
    { name: "key", word: "key" },
    { name: "since", word: "since", isTime: true },
    { name: "response_id", word: "responseId" },
  ];
  return (
    <section>
      <Narrow fields={fields} begin={filters} apply={setFilters} />
      <Exports<Feedback>
        path={path}
        name="plaudit-votes"
        columns={["id", "received_at", "response_id", "version", "key", "value", "tags", "comment", "correction", "source", "end_user", "retracted", "trainable", "revision"]}
        row={(one) => [one.id, one.received_at, one.response_id, one.version, one.key, one.value, one.tags.join(" "), one.comment, one.correction, one.source, one.end_user, one.retracted, one.trainable, one.revision]}
      />
      {list.items && list.items.length > 0 && (
        <Table label={t("tabVotes")} columns={[t("at"), t("version"), t("key"), t("vote"), t("tags"), t("said"), t("responseId")]}>
          {list.items.map((one) => (
            <tr key={one.id}>
              <td>
                <When at={one.received_at} />
              </td>
              <th scope="row">{one.version ?? "–"}</th>
              <td>{plain(one.key)}</td>
              <td>
                <Thumb row={one} />
              </td>
              <td>{one.tags.map(plain).join(", ")}</td>
              <td class="words">
                {one.comment && <Said text={one.comment} />}
                {one.correction && (
                  <details>
                    <summary>{t("correction")}</summary>
                    <Said text={one.correction} />
                  </details>
                )}
              </td>
              <td>
                <code title={one.response_id}>…{one.response_id.slice(-8)}</code>
              </td>
            </tr>
          ))}
        </Table>
      )}
      <Ending list={list} />
    </section>
  );
}

function Thumb({ row }: { row: Feedback }) {
  const { t } = useDesk();
  if (row.retracted) return <>{t("retracted")}</>;
  if (row.value === null) return <>–</>;
  if (Math.abs(row.value) !== 1) return <>{figure(row.value)}</>;
  const sign = row.value > 0 ? "up" : "down";
  return (
    <span class={`thumb ${sign}`}>
      <Drawing sign={sign} /> {t(`vote.${sign}`)}
    </span>
  );
}
