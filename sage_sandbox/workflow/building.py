"""From the data of a template to a Workflow: each part is checked by its model and becomes a frozen dataclass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from sage_sandbox.policy import Limits, Policy
from sage_sandbox.workflow.answers import schema_troubles
from sage_sandbox.workflow.checking import check_graph, check_references
from sage_sandbox.workflow.definition import (
    AskedLimits,
    Budgets,
    Keep,
    Operation,
    Parameter,
    Phase,
    SourceFile,
    Workflow,
)
from sage_sandbox.workflow.findings import EnoughFound, Finding, Findings, did_you_mean, quote
from sage_sandbox.workflow.model import (
    OPERATION_MODELS,
    BudgetsModel,
    CommandModel,
    KeepModel,
    LimitsModel,
    LlmModel,
    McpModel,
    OperationModel,
    ParameterModel,
    PhaseFields,
    PolicyModel,
    PythonModel,
    WorkflowFields,
)
from sage_sandbox.workflow.parameters import default_trouble
from sage_sandbox.workflow.parsing import find_odd_values
from sage_sandbox.workflow.positions import FieldPath, Locator
from sage_sandbox.workflow.sources import CodeTrouble, SourceReader, check_entry, check_module
from sage_sandbox.workflow.wording import explain, name_of

_Checked = TypeVar("_Checked", bound=BaseModel)
_FIELDS_MAX: Final = 1_000
_ANYTHING: Final = frozenset({"operations", "params", "default", "schema"})  # looked at elsewhere
_NO_POLICY: Final = Policy()
_NO_LIMITS: Final = AskedLimits()


class Builder:
    """Builds one workflow; everything wrong on the way goes to ``findings``, and building goes on."""

    def __init__(self, locator: Locator, reader: SourceReader, findings: Findings) -> None:
        self._locator = locator
        self._reader = reader
        self._findings = findings
        self._checked_code: dict[tuple[str, bool], CodeTrouble | None] = {}

    def build(self, data: Any) -> tuple[Workflow | None, dict[str, int]]:
        """The workflow, or None if anything is wrong with it; and the measures of as much of its graph as holds."""
        given = data.get("phases") if isinstance(data, dict) else None
        phases = given if isinstance(given, list) else []
        try:
            return self._build(data, phases)
        except EnoughFound:
            return None, {"nodes": len(phases), "edges": 0, "depth": 0}

    def _build(self, data: Any, raw_phases: list[Any]) -> tuple[Workflow | None, dict[str, int]]:
        head = self._check(WorkflowFields, data, ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of a stranger's code is not news
            phases = [self._phase(phase, ("phases", index)) for index, phase in enumerate(raw_phases)]
        graph = check_graph(raw_phases, self._findings)
        parameters = self._parameters(head.parameters) if head else None
        check_references(raw_phases, parameters, self._findings)
        if not head or self._findings.errors:
            return None, graph
        whole = tuple(phase for phase in phases if phase)
        budgets = _budgets(head.budgets)
        return Workflow(head.name, whole, head.description, head.timeout, parameters or {}, budgets=budgets), graph

    def _check(self, model: type[_Checked], data: Any, path: FieldPath) -> _Checked | None:
        if not isinstance(data, dict):
            self._add(path, f"must be a mapping, not {name_of(data)}")
        elif _is_crowded(data):
            self._add(path, f"a mapping here has more than {_FIELDS_MAX:,} fields")
        else:
            try:
                return model.model_validate(data)
            except ValidationError as error:
                explain(error, model, path, self._findings)
        return None

    def _add(self, path: FieldPath, message: str) -> None:
        self._findings.add(Finding(path, message))

    def _phase(self, data: Any, path: FieldPath) -> Phase | None:
        fields = self._check(PhaseFields, data, path)
        if not isinstance(data, dict):
            return None
        operations = self._operations(data.get("operations", ()), (*path, "operations"))
        dependencies = data.get("dependencies", [])
        if not isinstance(dependencies, list):
            self._add((*path, "dependencies"), f"must be a list of phase ids, not {name_of(dependencies)}")
            return None
        if not fields or operations is None:
            return None
        return Phase(
            fields.id,
            fields.name,
            operations,
            tuple(dependencies),
            Limits().timeout_s if fields.timeout is None else fields.timeout,
            fields.success_threshold,
            isinstance(fields.operations, dict),
        )

    def _operations(self, data: Any, path: FieldPath) -> tuple[Operation, ...] | None:
        if isinstance(data, dict):
            built = [self._operation(data, path, "op-1")]
        elif isinstance(data, list) and data:
            built = [self._operation(item, (*path, number), f"op-{number + 1}") for number, item in enumerate(data)]
        else:
            if data != ():  # a missing field has been reported
                trouble = "must not be empty" if data == [] else f"must be a list or a mapping, not {name_of(data)}"
                self._add(path, trouble)
            return None
        operations = tuple(operation for operation in built if operation)
        self._check_ids(operations, path)
        return operations if len(operations) == len(built) else None

    def _check_ids(self, operations: tuple[Operation, ...], path: FieldPath) -> None:
        if len({operation.id for operation in operations}) < len(operations):
            first_with: dict[str, int] = {}
            for number, operation in enumerate(operations):
                if first_with.setdefault(operation.id, number) != number:
                    message = f"the id {quote(operation.id)} is already that of operations[{first_with[operation.id]}]"
                    self._add((*path, number, "id"), message)

    def _operation(self, data: Any, path: FieldPath, default_id: str) -> Operation | None:
        model = self._model_of(data, path)
        fields = self._check(model, data, path) if model else None
        if isinstance(data, dict) and "params" in data:
            find_odd_values(data["params"], (*path, "params"), self._findings)
        if isinstance(fields, PythonModel):
            return self._python(fields, path, default_id)
        if isinstance(fields, CommandModel):
            return self._command(fields, path, default_id)
        if isinstance(fields, McpModel):
            return self._mcp(fields, path, default_id)
        if isinstance(fields, LlmModel):
            return self._llm(fields, path, default_id)
        if model is PythonModel:
            code, file = data.get("code"), data.get("file")
            self._code(code if isinstance(code, str) else None, file if isinstance(file, str) else None, path)
        return None

    def _model_of(self, data: Any, path: FieldPath) -> type[OperationModel] | None:
        if not isinstance(data, dict):
            self._add(path, f"must be a mapping, not {name_of(data)}")
            return None
        kind = data.get("type")
        if isinstance(kind, str) and kind in OPERATION_MODELS:
            return OPERATION_MODELS[kind]
        self._add((*path, "type"), _type_trouble(kind, "type" in data))
        return None

    def _python(self, fields: PythonModel, path: FieldPath, default_id: str) -> Operation:
        code = self._code(fields.code, fields.file, path)
        if fields.code is None and fields.file is None:
            self._add(path, "code (or file) is required")
        files = [
            SourceFile(name, self._source(name, (*path, "files", number), entry=False))
            for number, name in enumerate(fields.files)
            if self._is_new(name, fields, (*path, "files", number), number)
        ]
        return Operation(
            fields.id or default_id,
            "python",
            fields.params,
            code,
            fields.file or "",
            tuple(files),
            fields.packages,
            **self._common(fields, path),
        )

    def _command(self, fields: CommandModel, path: FieldPath, default_id: str) -> Operation:
        if not fields.argv[0]:
            self._add((*path, "argv", 0), "the program's name must not be empty")
        return Operation(
            fields.id or default_id,
            "command",
            fields.params,
            argv=fields.argv,
            output=fields.output,
            ok_codes=fields.ok_codes,
            **self._common(fields, path),
        )

    def _mcp(self, fields: McpModel, path: FieldPath, default_id: str) -> Operation:
        if not (fields.params is None or isinstance(fields.params, dict) or _is_reference(fields.params)):
            self._add((*path, "params"), f"the arguments of a tool are a mapping, not {name_of(fields.params)}")
        return Operation(
            fields.id or default_id,
            "mcp",
            fields.params,
            tool=fields.tool,
            policy=Policy(tool=(fields.tool,)),
            timeout_s=fields.timeout,
            retries=fields.retries,
            keep=_keep(fields.keep),
            cache=fields.cache and fields.cache[0],
            cache_ttl_s=fields.cache and fields.cache[1],
            line=self._locator.line(path),
        )

    def _llm(self, fields: LlmModel, path: FieldPath, default_id: str) -> Operation:
        if fields.answer is not None:
            find_odd_values(fields.answer, (*path, "schema"), self._findings)
            for below, text in schema_troubles(fields.answer):
                self._add((*path, "schema", *below), text)
        return Operation(
            fields.id or default_id,
            "llm",
            model=fields.model,
            prompt=fields.prompt,
            system=fields.system,
            max_tokens=fields.max_tokens,
            schema=fields.answer,
            policy=Policy(model=(fields.model,)),
            timeout_s=fields.timeout,
            retries=fields.retries,
            keep=_keep(fields.keep),
            cache=fields.cache and fields.cache[0],
            cache_ttl_s=fields.cache and fields.cache[1],
            line=self._locator.line(path),
        )

    def _common(self, fields: PythonModel | CommandModel, path: FieldPath) -> dict[str, Any]:
        return {
            "policy": _policy(fields.policy),
            "limits": _limits(fields.limits),
            "timeout_s": fields.timeout,
            "retries": fields.retries,
            "keep": _keep(fields.keep),
            "cache": fields.cache and fields.cache[0],
            "cache_ttl_s": fields.cache and fields.cache[1],
            "line": self._locator.line(path),
        }

    def _code(self, code: str | None, file: str | None, path: FieldPath) -> str:
        if file is not None and code is not None:
            self._add((*path, "file"), "there is code too: one of the two must go")
        elif file is not None:
            return self._source(file, (*path, "file"), entry=True)
        elif code is not None:
            self._check_code(code, (*path, "code"), "", entry=True)
        return code or ""

    def _source(self, name: str, path: FieldPath, *, entry: bool) -> str:
        try:
            text = self._reader.read(name)
        except ValueError as error:
            self._add(path, f"{quote(name)} {error}")
            return ""
        self._check_code(text, path, name, entry=entry)
        return text

    def _is_new(self, name: str, fields: PythonModel, path: FieldPath, number: int) -> bool:
        if name == fields.file or name in fields.files[:number]:
            self._add(path, f"{quote(name)} is listed twice")
            return False
        return True

    def _check_code(self, code: str, path: FieldPath, file: str, *, entry: bool) -> None:
        known = (code, entry)
        if known not in self._checked_code:
            self._checked_code[known] = check_entry(code) if entry else check_module(code)
        if trouble := self._checked_code[known]:
            self._findings.add(self._place_code_trouble(trouble, path, file))

    def _place_code_trouble(self, trouble: CodeTrouble, path: FieldPath, file: str) -> Finding:
        if not trouble.line:
            return Finding(path, trouble.message if not file else f"{quote(file)} {trouble.message}")
        if file:
            return Finding(path, trouble.message, place=(trouble.line, trouble.column), file=self._reader.path_of(file))
        if place := self._locator.code_place(path, trouble.line, trouble.column):
            return Finding(path, trouble.message, place=place)
        return Finding(path, f"{trouble.message} (line {trouble.line} of the code)")

    def _parameters(self, given: Mapping[str, ParameterModel]) -> dict[str, Parameter]:
        return {name: self._parameter(name, fields) for name, fields in given.items()}

    def _parameter(self, name: str, fields: ParameterModel) -> Parameter:
        has_default = "default" in fields.model_fields_set
        path: FieldPath = ("parameters", name, "default")
        if has_default:
            find_odd_values(fields.default, path, self._findings)
            if fields.required:
                self._add(path, "a required parameter cannot have a default")
            elif trouble := default_trouble(fields.type, fields.default):
                self._add(path, trouble)
        required = not has_default if fields.required is None else fields.required
        return Parameter(fields.type, fields.default, required, fields.description)


def _is_crowded(data: Mapping[str, Any], depth: int = 3) -> bool:
    """Whether some part has so many fields that pydantic would take seconds to name what is wrong with each."""
    return len(data) > _FIELDS_MAX or any(
        isinstance(value, dict) and key not in _ANYTHING and depth and _is_crowded(value, depth - 1)
        for key, value in data.items()
    )


def _is_reference(value: Any) -> bool:
    """Whether this becomes a mapping only when its references are filled in."""
    return isinstance(value, str) and value.startswith("${")


def _type_trouble(kind: Any, is_given: bool) -> str:
    if not is_given:
        return "is required: python, command, mcp or llm"
    if not isinstance(kind, str):
        return f"must be python, command, mcp or llm, not {name_of(kind)}"
    close = did_you_mean(kind, OPERATION_MODELS)
    return f"unknown operation type {quote(kind)}{close or ', known: python, command, mcp, llm'}"


def _policy(fields: PolicyModel) -> Policy:
    if not fields.model_fields_set:
        return _NO_POLICY
    return Policy(fields.read, fields.write, fields.write_through, fields.net, fields.loopback, fields.tool, fields.env)


def _limits(fields: LimitsModel) -> AskedLimits:
    if not fields.model_fields_set:
        return _NO_LIMITS
    return AskedLimits(fields.memory, fields.cpu, fields.pids, fields.disk)


def _budgets(fields: BudgetsModel) -> Budgets:
    return Budgets(fields.tokens, fields.cost, fields.time)


def _keep(fields: KeepModel | None) -> Keep | None:
    return Keep(fields.fields, fields.max_items, fields.max_bytes) if fields else None
