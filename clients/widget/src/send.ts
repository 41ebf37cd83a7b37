/** One vote under a feedback token, over `fetch`. */
export type Thumb = "up" | "down" | null;

export interface Said {
  response_id?: string;
  value: Thumb;
  tags?: string[];
  comment?: string;
}

export type Outcome = { ok: true; next: string | null } | { ok: false; status: number };

const TRIES = 3;

/** Sends a vote; a lost or overloaded try is repeated under the same idempotency key, so it counts once. */
export async function sendVote(base: string, token: string, said: Said): Promise<Outcome> {
  const headers = { "content-type": "application/json", "idempotency-key": randomKey() };
  const init: RequestInit = { method: "POST", headers, body: JSON.stringify(said), credentials: "omit", referrerPolicy: "no-referrer" };
  let status = 0;
  for (let attempt = 0; attempt < TRIES; attempt += 1) {
    if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, 400 * 2 ** attempt * (0.5 + Math.random())));
    try {
      const reply = await fetch(`${base}/v1/feedback/t/${encodeURIComponent(token)}`, init);
      if (reply.ok) return { ok: true, next: reply.headers.get("x-feedback-token") };
      status = reply.status;
      if (![408, 500, 502, 503, 504].includes(status) && !(await inProgress(reply))) break;
    } catch {
      status = 0; // no answer at all
    }
  }
  return { ok: false, status };
}

async function inProgress(reply: Response): Promise<boolean> {
  if (reply.status !== 409) return false;
  const body: unknown = await reply.json().catch(() => null);
  return (body as { error?: { code?: unknown } } | null)?.error?.code === "idempotency_in_progress";
}

// `crypto.randomUUID` is missing on pages served over plain HTTP.
function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
