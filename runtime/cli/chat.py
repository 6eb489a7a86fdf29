"""The interactive chat: a conversation with history, line editing and a few commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path

from ...loaders.chat_template import ChatTemplate, builtin_template
from ..generation import Generation
from ..llm import LLM
from ..sampling import SamplingParams
from .interrupt import Interrupt
from .options import shortened
from .screen import end_text
from .texts import Lines, read_text, stdin_lines

HELP = """\
  /help        this list
  /regen       answer the last message again
  /clear       forget the conversation
  /read FILE   add a text file to the next message
  /exit        leave (so does Ctrl-D, or Ctrl-C twice)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one."""


class Conversation:
    """The messages so far and the answers to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self.llm, self.params = llm, params
        if llm.chat_template is None:
            print("note: the model has no chat template, chatml is used", file=sys.stderr)
            llm.chat_template = ChatTemplate(builtin_template("chatml"), name="chatml")
        self.start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)

    def clear(self) -> None:
        self.messages = list(self.start)

    def answer(self, text: str) -> Generator[str | Generation, None, None]:
        """Yields the answer's pieces, empty ones too, and at last the generation; what was said stays a part of it all.

        An answer that is broken off is kept as far as it came; a message that cannot be answered is dropped.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            generation = self.llm.start(self.llm.chat_prompt(self.messages), self.params)
        except ValueError:
            self.messages.pop()
            raise
        pieces: list[str] = []
        try:
            yield ""
            for piece in generation.steps():
                pieces.append(piece)
                yield piece
            if generation.finish_reason == "error":
                raise ValueError(generation.handle.error)
        finally:
            generation.close()
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
        yield generation

    def take_back(self) -> str | None:
        """Removes the last message and its answer; returns the message."""
        if len(self.messages) < len(self.start) + 2:
            return None
        self.messages.pop()
        return self.messages.pop()["content"]


class Chat:
    """Reads messages and commands, prints answers. The prompt goes to stderr, answers to stdout."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.attached: list[str] = []
        self.stopped = False  # the last answer

    def run(self, first: str | None, *, once: bool) -> int:
        """The whole chat; returns the exit code."""
        if first is not None:
            self.say(first)
            if once:
                return 130 if self.stopped else 0
        read = _line_reader()
        if sys.stdin is not None and sys.stdin.isatty():
            print("Type a message, or /help for the commands.", file=sys.stderr)
        interrupted = False
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                if interrupted:
                    return 130
                interrupted = True
                print("(Ctrl-C again to leave)", file=sys.stderr)
                continue
            except EOFError:
                return 0
            interrupted = False
            if line.strip() == "/exit":
                return 0
            try:
                answered = self.handle(line)
            except ValueError as error:
                # Too long a message, most likely: it is dropped, the conversation before it stays.
                print(f"error: {error}", file=sys.stderr)
                continue
            if answered and once:
                return 130 if self.stopped else 0

    def handle(self, line: str) -> bool:
        """One line of input; true if it was answered."""
        command, _, argument = line.strip().partition(" ")
        if not line.strip():
            return False
        if command == "/help":
            print(HELP, file=sys.stderr)
        elif command == "/clear":
            self.conversation.clear()
            self.attached.clear()
            print("The conversation is forgotten.", file=sys.stderr)
        elif command == "/read":
            self._attach(argument.strip())
        elif command == "/regen":
            last = self.conversation.take_back()
            if last is None:
                print("There is no message to answer again.", file=sys.stderr)
            else:
                self.say(last)
                return True
        elif command.startswith("/"):
            print(f"{shortened(command)} is not a command; /help lists them", file=sys.stderr)
        else:
            text = "\n\n".join([*self.attached, line])
            self.attached.clear()
            self.say(text)
            return True
        return False

    def say(self, text: str) -> None:
        """Prints the answer to a message as it comes, until Ctrl-C."""
        from .run import print_timings

        answer = self.conversation.answer(text)
        with Interrupt() as interrupt:
            for piece in answer:
                if isinstance(piece, Generation):
                    end_text()
                    print(flush=True)
                    print_timings(piece)
                elif piece:
                    print(piece, end="", flush=True)
                if interrupt.pressed:
                    break
        # Closed here, the conversation keeps the part of the answer that was shown.
        answer.close()
        end_text()
        self.stopped = interrupt.pressed
        if self.stopped:
            print("\n(stopped)", file=sys.stderr)

    def _attach(self, name: str) -> None:
        try:
            self.attached.append(read_text(Path(name).expanduser()))
        except (OSError, ValueError, RuntimeError) as error:
            print(f"error: {shortened(str(error), 300)}", file=sys.stderr)
        else:
            print(f"{name} goes with your next message.", file=sys.stderr)


def _line_reader() -> Callable[[], str]:
    """Reads a message: with editing and history from a terminal, plain lines from a pipe."""
    if sys.stdin is None or not sys.stdin.isatty():
        return _plain_reader(stdin_lines())
    from .history import edited_lines

    return edited_lines()


def _plain_reader(lines: Lines) -> Callable[[], str]:
    def read() -> str:
        line = lines.read()
        if line is None:
            raise EOFError
        return line

    return read
