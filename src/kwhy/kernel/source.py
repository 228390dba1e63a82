"""What stands at a source position: the function, the statement, the condition that decides there.

Positions are those of GCC's line tables: lines and columns from 1, columns in bytes, a tab is one.
Functions made by macros carry the names of their DWARF: SYSCALL_DEFINE3(ioctl, ...) is
``__do_sys_ioctl``, COMPAT_SYSCALL_DEFINE3(ioctl, ...) ``__do_compat_sys_ioctl``, BPF_CALL_2(f, ...)
``____f``; ``shown`` keeps them as written.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kwhy.kernel import conditions
from kwhy.kernel.conditions import KINDS, Condition, Guard, condition_node, refine, statement_of
from kwhy.kernel.ctext import comment_text
from kwhy.kernel.parsed import ParsedFile, up

__all__ = ["Condition", "Guard", "SourceFile", "SourceFunction", "Statement", "refine"]


@dataclass(frozen=True, slots=True)
class Statement:
    """``kind``: "return", "goto", "if", "expression", "declaration", ...; ``text`` on one line."""

    kind: str
    text: str
    start: int
    end: int
    column: int = 1


@dataclass(frozen=True, slots=True)
class SourceFunction:
    """A definition; ``start`` is the first line of its head, ``body`` that of its "{"."""

    name: str
    shown: str
    start: int
    body: int
    end: int


class SourceFile(ParsedFile):
    """One source file, ready to be asked; nothing here raises on odd source."""

    # -- functions ---------------------------------------------------------------------------------

    @cached_property
    def functions(self) -> list[SourceFunction]:
        """Every function definition in order, whichever branch of an #if it stands in."""
        last = {part.group: part.index for part in sorted(self.parts, key=lambda p: p.index)}
        found = {f.start: f for tree in (self.tree_of(last), self.tree()) for f in self._in(tree)}
        known = {f.body for f in found.values()} | {f.end for f in found.values()}
        for first, end in self.bodies:
            if end not in known:
                found |= {f.start: f for f in self._in(self.tree_of(self.first, (first, end)))}
        return sorted(found.values(), key=lambda f: f.start)

    def _in(self, tree: Any) -> list[SourceFunction]:
        out: list[SourceFunction] = []
        stack = [tree.root_node]
        while stack:
            node = stack.pop()
            if node.type == "function_definition":
                if (found := self._function(node)) is not None:
                    out.append(found)
            elif node.type in ("translation_unit", "ERROR") or node.type.startswith("preproc"):
                stack += reversed(node.children)
        return out

    def _function(self, node: Any) -> SourceFunction | None:
        body = node.child_by_field_name("body")
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type != "identifier":
            inner = declarator.child_by_field_name("declarator")
            if inner is None:
                inner = next((c for c in declarator.named_children if "declarator" in c.type), None)
                inner = inner or next(
                    (c for c in declarator.named_children if c.type == "identifier"), None
                )
            declarator = inner
        if body is None or declarator is None:
            return None
        plain = self.raw(declarator)
        name, shown = self.prepared.functions.get(declarator.start_byte, (plain, plain))
        first = node.start_point[0] + 1
        return SourceFunction(name, shown, first, body.start_point[0] + 1, body.end_point[0] + 1)

    def function_at(self, line: int) -> SourceFunction | None:
        """The definition whose lines contain ``line``."""
        return next((f for f in self.functions if f.start <= line <= f.end), None)

    def function_named(self, name: str) -> SourceFunction | None:
        """By DWARF name; a system call's wrappers (__x64_sys_..., __se_sys_...) find its body."""
        plain = re.sub(r"^__(?:x64|ia32|arm64|se|do)_(compat_)?sys_", r"__do_\1sys_", name)
        plain = re.sub(r"^__do_sys_ia32_", "__do_sys_", plain)
        found = [f for f in self.functions if f.name in (name, plain)]
        return found[0] if found else None

    def comment_above(self, function: str) -> str:
        """The comment that ends right above the function's definition, "" if there is none."""
        found = self.function_named(function)
        if found is None:
            return ""
        above = found.start - 2
        if above < 0 or not self.lines[above].strip():
            return ""
        column = len(self.lines[above].rstrip())
        node = self.node(above + 1, max(column, 1))
        if node.type != "comment":
            return ""
        parts = [node]
        while (
            (before := parts[0].prev_sibling) is not None
            and before.type == "comment"
            and before.end_point[0] + 1 >= parts[0].start_point[0]
            and self.raw(parts[0]).startswith("//")
        ):
            parts.insert(0, before)
        return comment_text("\n".join(self.raw(part) for part in parts))

    # -- statements --------------------------------------------------------------------------------

    def statement(self, line: int, column: int = 0) -> Statement | None:
        """The smallest statement at a position (column 0: at the line's start)."""
        node = statement_of(self.node(line, column))
        return None if node is None else self._as_statement(node)

    def _as_statement(self, node: Any) -> Statement:
        kind = node.type.removesuffix("_statement")
        if node.type in KINDS:  # the head alone: the body is many lines
            condition = condition_node(node)
            text = f"{kind} {self.one_line(condition)}" if condition is not None else kind
            end = condition.end_point[0] + 1 if condition is not None else node.start_point[0] + 1
        else:
            text, end = self.one_line(node), node.end_point[0] + 1
        return Statement(kind, text, node.start_point[0] + 1, end, node.start_point[1] + 1)

    def return_statement(self, line: int) -> Statement | None:
        """The ``return`` on a line, or the one that the line's ``goto`` leads to."""
        found = self._returns(line)
        if found is not None:
            return found
        statement = self._goto(line)
        if statement is None:
            return None
        label = statement.text.removeprefix("goto").strip(" ;")
        target = self.label(line, label)
        return self._first_return(target) if target else None

    def _on_line(self, line: int, kind: str) -> Any:
        root = self.node(line, 0)
        stack = [statement_of(root) or root]
        while stack:
            node = stack.pop()
            if node.start_point[0] + 1 > line or node.end_point[0] + 1 < line:
                continue
            if node.type == kind:
                return node
            stack += reversed(node.children)
        return None

    def _returns(self, line: int) -> Statement | None:
        node = self._on_line(line, "return_statement")
        return None if node is None else self._as_statement(node)

    def _goto(self, line: int) -> Statement | None:
        node = self._on_line(line, "goto_statement")
        return None if node is None else self._as_statement(node)

    def label(self, line: int, name: str) -> int | None:
        """Line of a label in the function around ``line``."""
        function = self.function_at(line)
        if function is None:
            return None
        pattern = re.compile(rf"^\s*{re.escape(name)}\s*:(?!:)")
        for number in range(function.body, function.end + 1):
            if pattern.match(self.lines[number - 1]):
                return number
        return None

    def _first_return(self, line: int) -> Statement | None:
        function = self.function_at(line)
        for number in range(line, (function.end if function else line) + 1):
            if found := self._returns(number):
                return found
        return None

    # -- conditions --------------------------------------------------------------------------------

    def condition(self, line: int, column: int) -> Condition | None:
        """The smallest controlling condition that a position (a jump's) belongs to.

        That is: the position lies in the condition, or on the keyword, parenthesis, "?" or ":" that
        belongs to it; or in a chain of && and || that is returned or assigned; or on the name of a
        macro that tests (WARN_ON).  None when the position is in plain code.  Several jumps of one
        condition tell more together: see ``refine``.
        """
        found = conditions.find(self, line, column)
        return None if found is None else self._placed(found)

    def case_label(self, line: int, switch: int) -> str | None:
        """The label of the case that a line belongs to, in the switch that is headed at ``switch``.

        "default" for that one, None when the line is in no case of it.
        """
        for node in up(self.node(line, 0)):
            if self._is_case(node, switch):
                return self._case(node)
        return None

    def cases(self, switch: int) -> dict[str, list[Statement]]:
        """The cases of the switch that is headed at a line: label to statements.

        Those that share their statements all have them.
        """
        out: dict[str, list[Statement]] = {}
        shared: list[str] = []
        stack = [statement_of(self.node(switch, 0))]
        while stack:
            node = stack.pop()
            if node is None:
                continue
            if self._is_case(node, switch):
                shared.append(self._case(node))
                value = node.child_by_field_name("value")
                inner = [n for n in node.named_children if n != value and n.type != "comment"]
                if inner:
                    statements = [self._as_statement(each) for each in inner]
                    out.update(dict.fromkeys(shared, statements))
                    shared = []
            stack += reversed(node.children)
        return out

    def _is_case(self, node: Any, switch: int) -> bool:
        """Whether a node is a case of the switch whose head has that line."""
        if node.type != "case_statement":
            return False
        head = next((n for n in up(node) if n.type == "switch_statement"), node)
        test = condition_node(head)
        return test is not None and head.start_point[0] < switch <= test.end_point[0] + 1

    def _case(self, node: Any) -> str:
        value = node.child_by_field_name("value")
        return "default" if value is None else self.one_line(value)

    def guards(self, line: int, column: int = 0) -> list[Guard]:
        """Conditions whose branches enclose a position, outermost first."""
        found = conditions.guards(self, line, column)
        return [Guard(self._placed(guard.condition), guard.side) for guard in found]

    def _placed(self, condition: Condition) -> Condition:
        function = self.function_at(condition.start)
        return replace(condition, function=function.name if function else "")
