// Small things that every view shows. All text of people passes through `plain`, and none is HTML.
import type { ComponentChildren } from "preact";
import { plain } from "../shared/plain";
import { type Listed, useDesk } from "./desk";
import { named, type Speak } from "./words";

/** Text that somebody wrote: shown as it is, obeyed in nothing. */
export function Said({ text, class: kind }: { text: string; class?: string }) {
  return (
    <p class={`said ${kind ?? ""}`} dir="auto">
      {plain(text)}
    </p>
  );
}

export function Badge({ state, kind }: { state: string; kind?: string }) {
  const { t } = useDesk();
  return <span class={`badge ${kind ?? state}`}>{named(t, "state", state)}</span>;
}

/** A point in time, in the reader's zone; the exact one as a tip. */
export function When({ at }: { at: string | null | undefined }) {
  const { language } = useDesk();
  if (!at) return <span>–</span>;
  const locale = language === "zh" ? "zh-Hans" : "en-GB";
  const shown = new Date(at).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" });
  return (
    <time dateTime={at} title={at}>
      {shown}
    </time>
  );
}

/** A duration in the largest unit that fits. */
export function lasting(seconds: number, t: Speak): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return t("seconds", s);
  if (s < 5400) return t("minutes", Math.round(s / 60));
  if (s < 129_600) return t("hours", Math.round(s / 3600));
  return t("days", Math.round(s / 86_400));
}

export function since(at: string, now: number, t: Speak): string {
  const seconds = (now - Date.parse(at)) / 1000;
  return seconds < 5 ? t("now") : t("ago", lasting(seconds, t));
}

/** A figure with as many digits as are worth reading. */
export function figure(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return "∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export const percent = (share: number | null | undefined): string =>
  share === null || share === undefined ? "–" : `${Number((100 * share).toFixed(1))} %`;

export const counted = (counts: Record<string, number> | undefined): string =>
  Object.entries(counts ?? {})
    .map(([name, count]) => `${count} ${name.replaceAll("_", " ")}`)
    .join(", ");

export function Problem({ text }: { text: string }) {
  const { t } = useDesk();
  return text ? (
    <p role="alert" class="failed">
      {t("failed", plain(text))}
    </p>
  ) : null;
}

/** A table that scrolls in its box. */
export function Table(props: { label: string; columns: string[]; children: ComponentChildren }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={props.label}>
      <table>
        <thead>
          <tr>
            {props.columns.map((name) => (
              <th scope="col" key={name}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  );
}

/** What stands under a list: that there is nothing, that more can be had, that newer ones came. */
export function Ending<T>({ list }: { list: Listed<T> }) {
  const { t } = useDesk();
  return (
    <>
      <Problem text={list.problem} />
      {list.items === null && !list.problem && <p class="hint">{t("loading")}</p>}
      {list.items?.length === 0 && <p class="hint">{t("nothing")}</p>}
      <div class="buttons">
        {list.more && (
          <button type="button" onClick={list.more}>
            {t("more")}
          </button>
        )}
        {list.isStale && (
          <button type="button" onClick={list.again}>
            {t("newer")}
          </button>
        )}
      </div>
    </>
  );
}

/** Names and values, in two columns. */
export function Facts({ of }: { of: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {of.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** Figures by name, sorted. */
export function Figures({ label, of }: { label: string; of: Record<string, number> }) {
  const { t } = useDesk();
  return (
    <Table label={label} columns={[t("metric"), t("value")]}>
      {Object.entries(of)
        .sort(([a], [b]) => a.localeCompare(b))
        .map(([name, value]) => (
          <tr key={name}>
            <th scope="row">{plain(name)}</th>
            <td class="number">{figure(value)}</td>
          </tr>
        ))}
    </Table>
  );
}
