/** The TypeScript client of Plaudit. Start with `Plaudit`. */
export { Plaudit, type Page, type TokenVote, type Vote, type Words } from "./client.js";
export { ChatStream } from "./chat.js";
export type { AnswerFacts, ChatChoice, ChatChunk, ChatCompletion, ChatMessage, ChatParams, ChunkChoice, Usage } from "./chat.js";
export type { Arguments, BodyOf, QueryOf, ReplyOf, Route, Schemas } from "./api.js";
export type { ClientOptions, Clock, RequestOptions } from "./transport.js";
export {
  AuthenticationError,
  BadRequestError,
  BodyTooLargeError,
  ConfigurationError,
  ConflictError,
  ConnectionError,
  EngineError,
  ERROR_OF_STATUS,
  GatewayTimeoutError,
  GoneError,
  HeadersTooLargeError,
  InvalidRequestError,
  MethodNotAllowedError,
  NotFoundError,
  PermissionDeniedError,
  PlauditError,
  PreconditionFailedError,
  RateLimitError,
  RequestTimeoutError,
  ResponseError,
  ServerError,
  StatusError,
  StorageFullError,
  TimeoutError,
  UnavailableError,
  UnprocessableError,
  UnsupportedMediaError,
} from "./errors.js";
