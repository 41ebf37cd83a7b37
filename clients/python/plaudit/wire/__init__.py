"""The wire contract of Plaudit: every message that server, trainer and clients exchange. Needs pydantic only."""

from plaudit.wire.base import ErrorBody, ErrorDetail, JsonObject, Page, RequestModel, ResponseModel

__all__ = ["ErrorBody", "ErrorDetail", "JsonObject", "Page", "RequestModel", "ResponseModel"]
