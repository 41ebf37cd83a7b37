// A plot on a canvas, by uPlot. Loaded only when there is something to draw.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Drawn, Drawing, Series } from "./plot";

// Okabe and Ito's colours, darkened or lightened until each stands out from its ground by 3 to 1.
const LIGHT = ["#0072b2", "#c44e00", "#007a5a", "#a0377f", "#6b6100", "#444a55"];
const DARK = ["#56b4e9", "#f0a430", "#2fc69b", "#e39ac8", "#d6cf5b", "#c9ccd4"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [12, 4]];

export const colour = (index: number, dark: boolean): string => (dark ? DARK : LIGHT)[index % LIGHT.length]!;

type Mark = (ctx: CanvasRenderingContext2D, x: number, y: number, r: number) => void;
const MARKS: Mark[] = [
  (ctx, x, y, r) => ctx.arc(x, y, r, 0, 2 * Math.PI),
  (ctx, x, y, r) => ctx.rect(x - r, y - r, 2 * r, 2 * r),
  (ctx, x, y, r) => (ctx.moveTo(x, y - r * 1.3), ctx.lineTo(x + r * 1.2, y + r), ctx.lineTo(x - r * 1.2, y + r)),
  (ctx, x, y, r) => (ctx.moveTo(x, y - r * 1.4), ctx.lineTo(x + r * 1.4, y), ctx.lineTo(x, y + r * 1.4), ctx.lineTo(x - r * 1.4, y)),
];

/** x of all series in rising order, and the place of each. */
function columns(series: Series[]): number[] {
  return [...new Set(series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
}

/** How far a series stands aside, so that whiskers at one x do not hide each other. In device pixels. */
const aside = (index: number, count: number): number => (index - (count - 1) / 2) * 5 * devicePixelRatio;

/** Draws a series' marks and whiskers. */
function marks(drawing: Drawing, dark: boolean) {
  return (u: uPlot, place: number): void => {
    const one = drawing.series[place - 1]!;
    const { ctx } = u;
    const lines = one.points.length > 40; // steps of a run: a line says enough
    const shift = drawing.time || drawing.names ? aside(place - 1, drawing.series.length) : 0;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left - 8, u.bbox.top - 8, u.bbox.width + 16, u.bbox.height + 16);
    ctx.clip();
    ctx.strokeStyle = ctx.fillStyle = colour(place - 1, dark);
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const point of one.points) {
      const x = u.valToPos(point.x, "x", true) + shift;
      const y = u.valToPos(point.y, "y", true);
      if (point.low !== undefined && point.high !== undefined) {
        const cap = 4 * devicePixelRatio;
        const [low, high] = [u.valToPos(point.low, "y", true), u.valToPos(point.high, "y", true)];
        ctx.beginPath();
        for (const end of [low, high]) (ctx.moveTo(x - cap, end), ctx.lineTo(x + cap, end));
        (ctx.moveTo(x, low), ctx.lineTo(x, high), ctx.stroke());
      }
      if (lines) continue;
      ctx.beginPath();
      MARKS[(place - 1) % MARKS.length]!(ctx, x, y, 4 * devicePixelRatio);
      ctx.fill();
    }
    ctx.restore();
  };
}

/** Steps between marks where halves make no sense. */
const WHOLE = [1, 2, 5].flatMap((one) => [1, 10, 100, 1000, 10_000].map((ten) => one * ten)).sort((a, b) => a - b);

/** A mark of a time axis: the day, or the hour where marks are closer than a day. */
function moment(at: number, step: number, locale?: string): string {
  const date = new Date(at * 1000);
  const isDay = step >= 86_400 || (date.getHours() === 0 && date.getMinutes() === 0);
  const style: Intl.DateTimeFormatOptions = isDay ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" };
  return date.toLocaleString(locale, { ...style, hour12: false });
}

function axes(drawing: Drawing, ink: string, line: string): uPlot.Axis[] {
  const font = "12px system-ui, sans-serif";
  const shared = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, font, labelFont: `600 ${font}` };
  const names = drawing.names;
  const bottom: uPlot.Axis = { ...shared, label: drawing.xLabel, labelSize: 22, size: 34 };
  if (drawing.plain) bottom.incrs = WHOLE;
  if (drawing.time) bottom.space = 75;
  if (drawing.time) bottom.values = (_, splits, __, ___, step) => splits.map((at) => moment(at, step, drawing.locale));
  if (names) {
    bottom.splits = () => names.map((_, index) => index);
    bottom.values = (_, splits) => splits.map((at) => names[at] ?? "");
  }
  const left: uPlot.Axis = { ...shared, label: drawing.yLabel, labelSize: 22, size: 58 };
  return [bottom, left];
}

/** The range of y: intervals included, rates within 0 and 1. */
function range(drawing: Drawing): [number, number] {
  if (drawing.rate) return [0, 1];
  const values = drawing.series.flatMap((one) => one.points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.1;
  return [low - room, high + room];
}

function options(drawing: Drawing, box: HTMLElement, dark: boolean, hover: (x: number | null, left: number) => void): uPlot.Options {
  const style = getComputedStyle(box);
  const [first, last] = [columns(drawing.series)[0] ?? 0, columns(drawing.series).at(-1) ?? 1];
  const xs: [number, number] = drawing.span ?? (drawing.plain ? [first, Math.max(last, first + 1)] : [first - 0.5, last + 0.5]);
  return {
    width: Math.max(260, box.clientWidth),
    height: 280,
    legend: { show: false },
    scales: {
      x: { time: drawing.time ?? false, range: xs },
      y: { range: range(drawing) },
    },
    axes: axes(drawing, style.color, style.borderTopColor),
    cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
    series: [
      {},
      ...drawing.series.map((one, index) => ({
        label: one.label,
        stroke: colour(index, dark),
        width: drawing.names ? 0 : 1.5, // versions are no course of time: marks alone
        dash: DASHES[index % DASHES.length]!,
        spanGaps: true,
        points: { show: false },
      })),
    ],
    hooks: {
      drawSeries: [marks(drawing, dark)],
      setCursor: [
        (u) => {
          const at = u.cursor.idx;
          hover(at === null || at === undefined ? null : u.data[0][at]!, u.cursor.left ?? 0);
        },
      ],
    },
  };
}

/** Put a drawing into a box. */
export function draw(box: HTMLElement, drawing: Drawing, dark: boolean, hover: (x: number | null, left: number) => void): Drawn {
  const xs = columns(drawing.series);
  const data = drawing.series.map((one) => {
    const at = new Map(one.points.map((point) => [point.x, point.y]));
    return xs.map((x) => at.get(x) ?? null);
  });
  const plot = new uPlot(options(drawing, box, dark, hover), [xs, ...data], box);
  const watch = new ResizeObserver(() => plot.setSize({ width: Math.max(260, box.clientWidth), height: 280 }));
  watch.observe(box);
  let at = -1;
  return {
    step: (by) => {
      at = Math.min(xs.length - 1, Math.max(0, at + by));
      plot.setCursor({ left: plot.valToPos(xs[at] ?? 0, "x"), top: 10 });
    },
    png: () => picture(plot, drawing, dark, box),
    end: () => (watch.disconnect(), plot.destroy()),
  };
}

/** The plot with its title and legend as a picture. */
function picture(plot: uPlot, drawing: Drawing, dark: boolean, box: HTMLElement): Promise<Blob | null> {
  const drawn = plot.ctx.canvas;
  const scale = devicePixelRatio;
  const made = document.createElement("canvas");
  const rows = drawing.series.length > 1 ? Math.ceil(drawing.series.length / 4) : 0;
  made.width = drawn.width;
  made.height = drawn.height + (44 + 22 * rows) * scale;
  const ctx = made.getContext("2d")!;
  ctx.fillStyle = getComputedStyle(document.documentElement).backgroundColor;
  ctx.fillRect(0, 0, made.width, made.height);
  ctx.fillStyle = getComputedStyle(box).color;
  ctx.font = `600 ${15 * scale}px system-ui, sans-serif`;
  ctx.fillText(drawing.title, 12 * scale, 26 * scale);
  ctx.drawImage(drawn, 0, 38 * scale);
  ctx.font = `${12 * scale}px system-ui, sans-serif`;
  for (const [index, one] of (rows ? drawing.series : []).entries()) {
    const [x, y] = [(16 + (index % 4) * 150) * scale, drawn.height + (54 + 22 * Math.floor(index / 4)) * scale];
    ctx.fillStyle = colour(index, dark);
    ctx.beginPath();
    MARKS[index % MARKS.length]!(ctx, x, y - 4 * scale, 4 * scale);
    ctx.fill();
    ctx.fillStyle = getComputedStyle(box).color;
    ctx.fillText(one.label, x + 10 * scale, y);
  }
  return new Promise((done) => made.toBlob(done, "image/png"));
}
