// Overrides and embeddings reorder what is read ("exe.gpj"); the isolates and marks that languages need remain.
const REORDERING = /[\u202A-\u202E]/g;

/** Text in which characters that reorder their neighbours are shown instead of obeyed. */
export function plain(text: string): string {
  return text.replace(REORDERING, (found) => `[U+${found.charCodeAt(0).toString(16).toUpperCase()}]`);
}
