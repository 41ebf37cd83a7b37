// Tables as files. A spreadsheet runs what begins as a formula, and shows what an override reorders: both are undone.
import { plain } from "../shared/plain";

export type Cell = string | number | boolean | null | undefined;

// What Excel, LibreOffice and Sheets take for the start of a formula, full-width forms too, behind blanks as well.
const FORMULA = /^[\s\u0000-\u001F\u200B-\u200F\u2060-\u2069\uFEFF]*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20\t\r|%]/;

/** A cell that any spreadsheet shows as what it is. Numbers stay numbers. */
export function cell(value: Cell): string {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = plain(value);
  return `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
}

/** Comma-separated values (RFC 4180), with a mark that makes Excel read UTF-8. */
export function csv(columns: string[], rows: Cell[][]): string {
  const lines = [columns.map((name) => cell(name)), ...rows.map((row) => row.map(cell))];
  return `\uFEFF${lines.map((line) => line.join(",")).join("\r\n")}\r\n`;
}

/** A JSON value a line, as the API gave it: for programs, which obey nothing that stands in a text. */
export const jsonLines = (rows: unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

/** Have the browser save a file. */
export function save(name: string, content: Blob | string, type = "text/plain"): void {
  const blob = typeof content === "string" ? new Blob([content], { type: `${type};charset=utf-8` }) : content;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const saveCsv = (name: string, columns: string[], rows: Cell[][]): void =>
  save(`${name}.csv`, csv(columns, rows), "text/csv");
