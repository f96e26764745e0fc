"""Questions that an endpoint is asked by threads, each until it is answered or hopeless."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from random import uniform
from threading import Event
from typing import TYPE_CHECKING, Any

from vlalign.infer import questions
from vlalign.infer.questions import Demonstration, Parts, Top
from vlalign.types import BadRow, Item, UserError

if TYPE_CHECKING:
    from vlalign.infer.judges.endpoint import Endpoint

# Seconds: before the second try, before later ones at most, and what an endpoint may ask to wait.
DELAY, LONGEST, PATIENCE = 0.5, 8.0, 120.0
OF_THE_PAIR = (400, 413, 422)  # a prompt that is too long, or pictures where only texts are read
OF_THE_HOUR = (408, 409, 429)  # and 500 and above
WHAT_TO_DO = {
    401: "the key is refused; put a valid one into the variable that key_env names",
    403: "the key is refused, or may not do this; put another into the variable that key_env names",
    404: "no such model or address; see what the endpoint lists, and whether url should end in /v1",
}


class Again(UserError):
    """A fault that may pass. `wait`: seconds that the endpoint asks for; `gone`: nobody listens there."""

    def __init__(self, told: str, wait: float | None = None, gone: bool = False) -> None:
        super().__init__(told)
        self.wait, self.gone = wait, gone


class Hopeless(UserError):
    """A fault that every other pair would meet."""


class EndpointJudge:
    """A Judge. `number` makes the measurement of what is told of the first token."""

    width = 1
    shows = True  # what is `shown` to it

    def __init__(self, spec: "Endpoint", digest: str, client: Any, number: Callable[[Top], float]) -> None:
        """`client`: of the package openai, made to try once."""
        self.spec, self.digest, self.client, self.number = spec, digest, client, number
        self.said = questions.messages(spec.prompt)

    def measure(
        self,
        query: Item,
        candidates: Sequence[Item],
        shown: Sequence[Sequence[Demonstration]] | None = None,
    ) -> Iterator[Mapping[int, Sequence[float]]]:
        """[score] by the candidate's place, as answers come; closing it stops what is not yet sent.

        `shown`: of each candidate, what stands before its question. In the end raises BadRow where answers
        are missing because of the pairs alone, otherwise UserError.
        """
        asked, stop, faults = questions.parts(query), Event(), list[UserError]()
        pool = ThreadPoolExecutor(self.spec.concurrency, "judge")
        try:
            pairs = enumerate(zip(candidates, shown or [()] * len(candidates), strict=True))
            places = {pool.submit(self._score, asked, own, stop, told): at for at, (own, told) in pairs}
            for future in as_completed(places):
                try:
                    score = future.result()
                except UserError as fault:
                    faults.append(fault)
                    if isinstance(fault, Hopeless):
                        stop.set()
                else:
                    yield {places[future]: [score]}
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if faults:
            raise self._summed(faults, len(candidates)) from None

    def _summed(self, faults: Sequence[UserError], asked: int) -> UserError:
        kinds = (BadRow, Again, UserError, Hopeless)  # the last of them says most of what is to be done
        first = max(faults, key=lambda fault: [type(fault) is kind for kind in reversed(kinds)])
        told = f"{len(faults)} of {asked} candidates have no answer of {self.spec.model}: {first}"
        if isinstance(first, BadRow):
            return BadRow(first.reason, told)
        return UserError(
            f"{self.spec.url}: {told}. Once that is put right, run it again: what was measured is kept"
        )

    def _score(
        self, query: Parts, candidate: Item, stop: Event, shown: Sequence[Demonstration] = ()
    ) -> float:
        """Raises BadRow, Again after the last try, Hopeless, UserError."""
        if stop.is_set():
            raise Again("it was not asked")
        parts, instruction = questions.parts, self.spec.prompt.instruction
        before = [(parts(each.query), parts(each.candidate), self.spec.answer(each.right)) for each in shown]
        messages = questions.filled(self.said, instruction, query, parts(candidate), before)
        tries = 0
        while True:
            try:
                return self.number(self._top(messages))
            except Again as fault:
                wait = uniform(0.75, 1) * min(DELAY * 2**tries, LONGEST) if fault.wait is None else fault.wait
                if tries < self.spec.retries and wait <= PATIENCE and not stop.wait(wait):
                    tries += 1
                    continue
                if fault.gone:
                    raise Hopeless(str(fault)) from None
                raise

    def _top(self, messages: Any) -> Top:
        """What is told of the first token of the answer. Raises BadRow, Again, Hopeless, UserError."""
        import openai

        try:
            answer = self.client.chat.completions.create(
                model=self.spec.model,
                messages=messages,
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=self.spec.top_logprobs,
            )
            top, ended = questions.top_words(answer), answer.choices[0].finish_reason
        except openai.APIStatusError as error:
            raise self._refusal(error.status_code, error.response.headers, self._told(error)) from None
        except openai.APIConnectionError as error:
            # By name, since the client speaks through either of two packages that have it.
            gone = type(error.__cause__).__name__ == "ConnectError"
            raise Again(
                f"the endpoint is down or cut the answer off ({self._told(error)})", gone=gone
            ) from None
        except (openai.OpenAIError, ValueError, AttributeError, LookupError, TypeError) as error:
            raise Again(f"what came is no chat completion ({self._told(error)})") from None
        if ended == "content_filter":
            raise BadRow("refused", "the endpoint's filter keeps the answer back")
        if len(top) < 2:
            raise UserError(
                f"{len(top)} log-probabilities came of the answer, and a measurement needs 2 or more; ask an "
                "endpoint that tells top_logprobs, as vLLM does"
            )
        return top

    def _refusal(self, status: int, headers: Mapping[str, str], told: str) -> UserError:
        if status in OF_THE_PAIR:
            return BadRow("refused", told)
        if status in OF_THE_HOUR or status >= 500:
            try:
                return Again(told, float(headers.get("retry-after", "")))
            except ValueError:  # it says nothing, or a date
                return Again(told)
        return Hopeless(f"{told}: {WHAT_TO_DO.get(status, 'see what the endpoint says')}")

    def _told(self, error: Exception) -> str:
        """In a line, without the key, which some endpoints repeat."""
        told = " ".join(f"{error} {error.__cause__ or ''}".split())
        return told.replace(self.client.api_key, "***")[:300]
