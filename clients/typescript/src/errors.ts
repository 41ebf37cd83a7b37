/**
 * Everything the client throws.
 *
 * PlauditError
 * ├── ConfigurationError            a bad address, a key that is no header value
 * ├── InvalidRequestError           the arguments cannot make a request; nothing was sent
 * ├── ConnectionError               no answer, or broken off
 * │   └── TimeoutError              no answer in time
 * ├── ResponseError                 an answer that is not Plaudit's
 * └── StatusError                   the server said no: one class for each status, below
 */
export class PlauditError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

export class ConfigurationError extends PlauditError {}
export class InvalidRequestError extends PlauditError {}
export class ConnectionError extends PlauditError {}
export class TimeoutError extends ConnectionError {}
export class ResponseError extends PlauditError {}

/** What a refusal says. `retryAfterMs`: when the server said to come back. */
export interface Refusal {
  status: number;
  type?: string | null;
  code?: string | null;
  param?: string | null;
  requestId?: string | null;
  retryAfterMs?: number | null;
}

/** The server refused or failed. `code` is the machine-readable reason, such as `engine_unavailable`. */
export class StatusError extends PlauditError {
  readonly status: number;
  readonly type: string | null;
  readonly code: string | null;
  readonly param: string | null;
  /** What to look for in the server's log. */
  readonly requestId: string | null;
  readonly retryAfterMs: number | null;

  constructor(message: string, refusal: Refusal) {
    super(message);
    this.status = refusal.status;
    this.type = refusal.type ?? null;
    this.code = refusal.code ?? null;
    this.param = refusal.param ?? null;
    this.requestId = refusal.requestId ?? null;
    this.retryAfterMs = refusal.retryAfterMs ?? null;
  }
}

export class BadRequestError extends StatusError {}
export class AuthenticationError extends StatusError {}
export class PermissionDeniedError extends StatusError {}
export class NotFoundError extends StatusError {}
export class MethodNotAllowedError extends StatusError {}
export class RequestTimeoutError extends StatusError {}
export class ConflictError extends StatusError {}
export class GoneError extends StatusError {}
export class PreconditionFailedError extends StatusError {}
export class BodyTooLargeError extends StatusError {}
export class UnsupportedMediaError extends StatusError {}
export class UnprocessableError extends StatusError {}
export class RateLimitError extends StatusError {}
export class HeadersTooLargeError extends StatusError {}
/** 500, and every 5xx that has no class of its own. */
export class ServerError extends StatusError {}
export class EngineError extends ServerError {}
export class UnavailableError extends ServerError {}
export class GatewayTimeoutError extends ServerError {}
export class StorageFullError extends ServerError {}

/** The class for each status that the server or a proxy before it gives. */
export const ERROR_OF_STATUS: Readonly<Record<number, typeof StatusError>> = {
  400: BadRequestError,
  401: AuthenticationError,
  403: PermissionDeniedError,
  404: NotFoundError,
  405: MethodNotAllowedError,
  408: RequestTimeoutError,
  409: ConflictError,
  410: GoneError,
  412: PreconditionFailedError,
  413: BodyTooLargeError,
  415: UnsupportedMediaError,
  422: UnprocessableError,
  429: RateLimitError,
  431: HeadersTooLargeError,
  500: ServerError,
  502: EngineError,
  503: UnavailableError,
  504: GatewayTimeoutError,
  507: StorageFullError,
};

/** HTTP status for an error inside a stream, where it has none of its own. */
const STATUS_OF_TYPE: Readonly<Record<string, number>> = {
  invalid_request_error: 400,
  authentication_error: 401,
  permission_error: 403,
  not_found_error: 404,
  conflict_error: 409,
  gone_error: 410,
  rate_limit_error: 429,
  engine_error: 502,
  overloaded_error: 503,
  storage_error: 507,
};

/** OpenAI's error object, as far as it can be trusted. */
export interface ErrorDetail {
  message?: unknown;
  type?: unknown;
  param?: unknown;
  code?: unknown;
}

/** The error object inside a body; undefined where there is none. */
export function errorDetail(body: unknown): ErrorDetail | undefined {
  const error = typeof body === "object" && body !== null ? (body as { error?: unknown }).error : undefined;
  return typeof error === "object" && error !== null ? error : undefined;
}

/** The error that a refusal stands for. Without `status` (inside a stream) its code or type tells. */
export function statusError(detail: ErrorDetail, known: Partial<Refusal> = {}): StatusError {
  const status = known.status ?? statusInside(detail);
  const kind = ERROR_OF_STATUS[status] ?? (status >= 500 ? ServerError : StatusError);
  const message = typeof detail.message === "string" && detail.message ? detail.message : `HTTP ${status}`;
  const { type, code, param } = detail;
  return new kind(message, { ...known, status, type: text(type), code: text(code), param: text(param) });
}

function statusInside(detail: ErrorDetail): number {
  const numeric = typeof detail.code === "number" && detail.code >= 400 && detail.code < 600;
  return numeric ? (detail.code as number) : (STATUS_OF_TYPE[String(detail.type)] ?? 500);
}

function text(value: unknown): string | null {
  return value === null || value === undefined ? null : String(value);
}
