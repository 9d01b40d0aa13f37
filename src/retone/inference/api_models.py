"""What the OpenAI-compatible API reads: requests, checked field by field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from retone.conversation import Message, Role
from retone.inference.sampling import Sampling

MOST_CHOICES = 16
# Fields of the OpenAI API that are not served: asking for them is an error, not a silent loss.
NOT_SERVED = ("tools", "tool_choice", "functions", "function_call", "logit_bias", "audio",
              "web_search_options", "prediction", "suffix", "echo", "best_of")  # fmt: skip


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopText = Annotated[Text, Field(min_length=1, max_length=200)]


class TextPart(BaseModel):
    """A piece of a message; only text is read."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart]

    def message(self) -> Message:
        """As the rest of retone reads it."""
        role: Role = "system" if self.role == "developer" else self.role
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message(role, text)


class StreamOptions(BaseModel):
    """What a stream holds besides its pieces."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """The form of an answer; only plain text is promised."""

    type: Literal["text"] = "text"


class Request(BaseModel, ABC):
    """What chat and plain completions have in common."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: Text
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """None takes the likeliest token, as evaluation does."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        asked = [name for name in NOT_SERVED if isinstance(values, dict) and values.get(name)]
        if asked:
            raise ValueError(f"{', '.join(asked)}: not served here")
        return values

    def sampling(self, usual: Sampling, choice: int) -> Sampling:
        """How the answer is written: what the request leaves open is as `usual`."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=self.most_tokens or usual.max_new_tokens,
            temperature=usual.temperature if self.temperature is None else self.temperature,
            top_p=usual.top_p if self.top_p is None else self.top_p,
            top_k=usual.top_k if self.top_k is None else self.top_k,
            repetition_penalty=self.repetition_penalty or usual.repetition_penalty,
            seed=(usual.seed if self.seed is None else self.seed) + choice,
            stop=tuple(stop),
        )

    @property
    def most_tokens(self) -> int | None:
        """The longest answer in tokens, where the request says so."""
        return self.max_tokens

    @property
    @abstractmethod
    def top(self) -> int | None:
        """Likeliest tokens to tell beside each; None tells nothing of probabilities."""


class LoadAdapter(BaseModel):
    """The body of POST /v1/load_lora_adapter."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=200)]
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]
    """A run's directory or name, or a folder that peft wrote."""


class UnloadAdapter(BaseModel):
    """The body of POST /v1/unload_lora_adapter."""

    lora_name: Text


class ChatRequest(Request):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """The longest answer in tokens, under its newer or its older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """Likeliest tokens to tell beside each."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    """The body of POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def top(self) -> int | None:
        """Likeliest tokens to tell beside each."""
        return self.logprobs

    @property
    def prompts(self) -> list[str]:
        """The texts that are to be gone on with."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt
