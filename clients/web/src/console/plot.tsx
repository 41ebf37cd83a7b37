// A figure: a plot with title, legend and tooltip, the same as a table, and both as files.
import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { plain } from "../shared/plain";
import { useDesk } from "./desk";
import { type Cell, save, saveCsv } from "./export";
import { figure, percent } from "./parts";

export interface Point {
  x: number;
  y: number;
  low?: number;
  high?: number;
  /** How many it rests on. */
  n?: number;
}

export interface Series {
  label: string;
  points: Point[];
}

export interface Drawing {
  /** Of the files. */
  name: string;
  title: string;
  xLabel: string;
  yLabel: string;
  series: Series[];
  /** x is in seconds since 1970. */
  time?: boolean;
  /** The first and last x shown; else those of the points. */
  span?: [number, number];
  /** Of dates, as the browser names it. */
  locale?: string;
  /** x counts these names. */
  names?: string[];
  /** x is plain numbers, shown edge to edge. */
  plain?: boolean;
  /** y is a share. */
  rate?: boolean;
}

export interface Drawn {
  step: (by: number) => void;
  png: () => Promise<Blob | null>;
  end: () => void;
}

type Canvas = typeof import("./canvas");

/** Whether the page is dark now; follows the system's and the reader's choice. */
function useDark(): boolean {
  const media = matchMedia("(prefers-color-scheme: dark)");
  const look = (): boolean => {
    const chosen = document.documentElement.dataset["theme"];
    return chosen === "dark" || (chosen !== "light" && media.matches);
  };
  const [dark, setDark] = useState(look);
  useEffect(() => {
    const again = (): void => setDark(look());
    const watch = new MutationObserver(again);
    watch.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    media.addEventListener("change", again);
    return () => (watch.disconnect(), media.removeEventListener("change", again));
  }, []);
  return dark;
}

const written = (point: Point, drawing: Drawing): string => (drawing.rate ? percent(point.y) : figure(point.y));

function interval(point: Point, drawing: Drawing): string {
  if (point.low === undefined || point.high === undefined) return "";
  const show = drawing.rate ? percent : figure;
  return `${show(point.low)} – ${show(point.high)}`;
}

function xOf(x: number, drawing: Drawing, language: string): string {
  if (drawing.names) return drawing.names[x] ?? "";
  if (!drawing.time) return String(x);
  const locale = language === "zh" ? "zh-Hans" : "en-GB";
  return new Date(x * 1000).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" });
}

/** The colour of a series, as it is drawn. */
function Swatch({ index, canvas, dark }: { index: number; canvas: Canvas | null; dark: boolean }) {
  const fill = canvas?.colour(index, dark) ?? "currentColor";
  const shapes = [
    <circle cx="7" cy="7" r="5" fill={fill} />,
    <rect x="2" y="2" width="10" height="10" fill={fill} />,
    <path d="M7 1 13 12H1z" fill={fill} />,
    <path d="M7 0 14 7 7 14 0 7z" fill={fill} />,
  ];
  return (
    <svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">
      {shapes[index % shapes.length]}
    </svg>
  );
}

interface Shown {
  canvas: Canvas | null;
  drawn: Drawn | null;
  isFailed: boolean;
  /** The x under the cursor. */
  over: number | null;
}

/** Draw into a box: load what draws, draw anew where the drawing or the colours change. */
function useDrawn(drawing: Drawing, box: RefObject<HTMLDivElement | null>, dark: boolean): Shown {
  const [canvas, setCanvas] = useState<Canvas | null>(null);
  const [drawn, setDrawn] = useState<Drawn | null>(null);
  const [isFailed, setFailed] = useState(false);
  const [over, setOver] = useState<number | null>(null);
  const empty = isEmpty(drawing);
  useEffect(() => {
    if (!empty) void import("./canvas").then(setCanvas, () => setFailed(true));
  }, [empty]);
  useEffect(() => {
    if (!canvas || !box.current || empty) return;
    const made = canvas.draw(box.current, drawing, dark, (x, left) => setOver(left < 0 ? null : x));
    setDrawn(made);
    return () => (made.end(), setDrawn(null), setOver(null));
  }, [canvas, dark, JSON.stringify(drawing)]);
  return { canvas, drawn, isFailed, over };
}

const isEmpty = (drawing: Drawing): boolean => drawing.series.every((one) => one.points.length === 0);

export function Plot({ drawing }: { drawing: Drawing }) {
  const { t, language } = useDesk();
  const dark = useDark();
  const box = useRef<HTMLDivElement>(null);
  const { canvas, drawn, isFailed, over } = useDrawn(drawing, box, dark);
  const onKey = (event: KeyboardEvent): void => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    drawn?.step(by);
  };
  if (isEmpty(drawing))
    return (
      <figure class="plot">
        <figcaption>
          <h3>{drawing.title}</h3>
        </figcaption>
        <p class="hint">{t("nothing")}</p>
      </figure>
    );
  return (
    <figure class="plot">
      <figcaption>
        <h3>{drawing.title}</h3>
        <Tools drawing={drawing} drawn={drawn} language={language} />
      </figcaption>
      {isFailed && <p class="failed">{t("plotFailed")}</p>}
      <Legend drawing={drawing} canvas={canvas} dark={dark} />
      <div
        class="canvas"
        ref={box}
        tabIndex={0}
        role="img"
        aria-label={`${drawing.title}: ${drawing.yLabel}, ${drawing.xLabel}`}
        onKeyDown={onKey}
      />
      <Tip drawing={drawing} at={over} language={language} />
      <AsTable drawing={drawing} language={language} />
    </figure>
  );
}

function Tools({ drawing, drawn, language }: { drawing: Drawing; drawn: Drawn | null; language: string }) {
  const { t, say } = useDesk();
  const png = async (): Promise<void> => {
    const blob = await drawn?.png();
    if (!blob) return;
    save(`${drawing.name}.png`, blob);
    say(t("done", `${drawing.name}.png`));
  };
  const table = (): void => {
    saveCsv(drawing.name, ...cells(drawing, language));
    say(t("done", `${drawing.name}.csv`));
  };
  return (
    <span class="tools">
      <button type="button" aria-label={t("savePng", drawing.title)} disabled={!drawn} onClick={() => void png()}>
        {t("png")}
      </button>
      <button type="button" aria-label={t("saveCsv", drawing.title)} onClick={table}>
        {t("csv")}
      </button>
    </span>
  );
}

/** Who is who. A single series by version needs none: its title says it. */
function Legend({ drawing, canvas, dark }: { drawing: Drawing; canvas: Canvas | null; dark: boolean }) {
  const { t } = useDesk();
  if (drawing.series.length === 1 && drawing.names) return null;
  return (
    <ul class="legend" aria-label={t("legend", drawing.title)}>
      {drawing.series.map((one, index) => (
        <li key={one.label}>
          <Swatch index={index} canvas={canvas} dark={dark} /> {plain(one.label)}
        </li>
      ))}
    </ul>
  );
}

/** What stands under the cursor, in words. */
function Tip({ drawing, at, language }: { drawing: Drawing; at: number | null; language: string }) {
  const found = drawing.series.flatMap((one) => one.points.filter((p) => p.x === at).map((p) => [one.label, p] as const));
  return (
    <p class="tip" aria-live="polite">
      {at !== null && found.length > 0 && (
        <>
          <strong>{xOf(at, drawing, language)}</strong>{" "}
          {found.map(([label, point]) => (
            <span key={label}>
              {plain(label)}: {written(point, drawing)}
              {interval(point, drawing) && ` (${interval(point, drawing)})`}
              {point.n !== undefined && `, n = ${point.n}`}
            </span>
          ))}
        </>
      )}
    </p>
  );
}

function AsTable({ drawing, language }: { drawing: Drawing; language: string }) {
  const { t } = useDesk();
  const [columns, rows] = cells(drawing, language);
  return (
    <details>
      <summary>{t("asTable")}</summary>
      <div class="scroll" tabIndex={0} role="region" aria-label={drawing.title}>
        <table>
          <thead>
            <tr>
              {columns.map((name) => (
                <th scope="col" key={name}>
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row, index) => (
              <tr key={index}>
                {row.map((cell, place) => (
                  <td key={place} class={typeof cell === "number" ? "number" : ""}>
                    {typeof cell === "number" ? figure(cell) : plain(String(cell ?? ""))}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

/** Columns and rows of a drawing. */
function cells(drawing: Drawing, language: string): [string[], Cell[][]] {
  const rows = drawing.series.flatMap((one) =>
    one.points.map((p): Cell[] => [one.label, xOf(p.x, drawing, language), p.y, p.low, p.high, p.n]),
  );
  return [["series", drawing.xLabel, drawing.yLabel, "low (95 %)", "high (95 %)", "n"], rows];
}
