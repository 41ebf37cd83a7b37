/** A scripted `fetch` and a clock on which only sleeping takes time. */
import { Plaudit, type ClientOptions, type Clock } from "../src/index.js";

export class FakeClock implements Clock {
  at = 0;
  naps: number[] = [];
  now = () => this.at;
  draw = () => 1;
  sleep = (ms: number) => {
    this.naps.push(ms);
    this.at += ms;
    return Promise.resolve();
  };
}

export interface Sent {
  url: URL;
  method: string;
  headers: Headers;
  body: unknown;
}

type Reply = Response | Error | ((sent: Sent) => Response | Promise<Response>);

/** Answers with the replies in turn, the last one for ever. */
export function scripted(replies: Reply[], options: ClientOptions = {}) {
  const sent: Sent[] = [];
  const clock = new FakeClock();
  const fetch = async (input: unknown, init: RequestInit = {}): Promise<Response> => {
    const body = init.body === undefined ? undefined : (JSON.parse(init.body as string) as unknown);
    sent.push({ url: new URL(String(input)), method: init.method ?? "GET", headers: new Headers(init.headers), body });
    const reply = replies.length > 1 ? replies.shift()! : replies[0]!;
    if (reply instanceof Error) throw reply;
    return typeof reply === "function" ? reply(sent.at(-1)!) : reply.clone();
  };
  const client = new Plaudit({ baseUrl: "http://plaudit.test", apiKey: "plk_test", fetch, clock, ...options });
  return { client, sent, clock };
}

export function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } });
}

export function refusal(status: number, code: string | null = null, headers: Record<string, string> = {}): Response {
  return json({ error: { message: "no", type: "some_error", param: null, code } }, status, headers);
}

export const ID = "chatcmpl-01890a5d-ac96-774b-bcce-b302099a8057";

export function chunk(content: string | null, finish_reason: string | null = null): unknown {
  return { id: ID, model: "policy@v3", choices: [{ index: 0, delta: content === null ? {} : { content }, finish_reason }] };
}

/** A stream of these events, cut into pieces of `size` bytes. */
export function streamed(events: unknown[], { done = true, size = 7 } = {}): Response {
  const lines = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("") + (done ? "data: [DONE]\n\n" : "");
  const bytes = new TextEncoder().encode(lines);
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream", "x-feedback-token": "ft1_x" } });
}
