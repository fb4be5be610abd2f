"""Malformed templates: each is explained in place, exit code 2, no traceback, and nothing is left behind."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_sandbox.cli.main import main
from sage_sandbox.workflow.loading import inspect_text

HEAD = "name: n\nphases:\n"
PHASE = HEAD + "- id: a\n  name: A\n"  # the next line is 5
COMMAND = PHASE + "  operations:\n    type: command\n"  # 7
PYTHON = PHASE + "  operations:\n    type: python\n"  # 7
WHOLE = COMMAND + "    argv: [ls]\n"  # 8
CODE = PYTHON + "    code: 'def run(): pass'\n"  # 8


def two(first="", second="", more=""):
    """Two phases a and b with extra fields; that of the first stands on line 4, of the second on 6."""
    operation = "operations: {type: command, argv: [ls]}"
    return (
        f"{HEAD}- id: a\n  {{name: A, {operation}{first}}}\n".replace("- id: a\n  {", "- {id: a,\n  ")
        + f"- {{id: b,\n  name: B, {operation}{second}}}\n{more}"
    )


# name, text, what the message says, line
YAML = [
    ("empty", "", "must be a mapping, not nothing", 1),
    ("blank", "  \n \n", "must be a mapping", 1),
    ("only a comment", "# nothing\n", "must be a mapping", 1),
    ("null", "~", "must be a mapping", 1),
    ("a text", "hello", "must be a mapping, not text", 1),
    ("a number", "12", "must be a mapping, not the number 12", 1),
    ("a list", "- a\n", "must be a mapping, not a list", 1),
    ("empty mapping", "{}", "name: is required", 1),
    ("no phases", "name: n\n", "phases: is required", 1),
    ("no name", "phases: []\n", "name: is required", 1),
    ("phases empty", "name: n\nphases: []\n", "phases: must not be empty", 2),
    ("phases null", "name: n\nphases:\n", "phases: must be a list, not nothing", 2),
    ("phases a mapping", "name: n\nphases: {a: 1}\n", "phases: must be a list, not a mapping", 2),
    ("phases text", "name: n\nphases: a\n", "phases: must be a list, not text: write [a]", 2),
    ("name empty", WHOLE.replace("name: n", "name: ''"), "name: must not be empty", 1),
    ("name long", WHOLE.replace("name: n", "name: " + "x" * 101), "at most 100 long, not 101", 1),
    ("name a number", WHOLE.replace("name: n", "name: 1"), "must be text, not the number 1: put it in quotes", 1),
    ("name a boolean", WHOLE.replace("name: n", "name: true"), "must be text, not true: put it in quotes", 1),
    ("name a float", WHOLE.replace("name: n", "name: 1.5"), "must be text, not the number 1.5", 1),
    ("name a list", WHOLE.replace("name: n", "name: [n]"), "must be text, not a list", 1),
    ("name null", WHOLE.replace("name: n", "name:"), "must be text, not nothing", 1),
    ("description a number", WHOLE + "description: 1\n", "description: must be text", 8),
    ("unknown field", WHOLE + "phazes: 1\n", "phazes: unknown field, did you mean 'phases'?", 8),
    ("very unknown field", WHOLE + "zzzz: 1\n", "zzzz: unknown field, known here: name,", 8),
    ("field of a phase", WHOLE + "dependencies: []\n", "belongs to a phase", 8),
    ("hostile field", WHOLE + '"\\e[31m\\u202E": 1\n', "\\x1b[31m\\u202e: unknown field", 8),
    ("timeout text", WHOLE + "timeout: soon\n", "timeout: 'soon' is not a duration", 8),
    ("timeout zero", WHOLE + "timeout: 0\n", "timeout: 0 is not a duration", 8),
    ("timeout negative", WHOLE + "timeout: -5\n", "timeout: -5 is not a duration", 8),
    ("timeout boolean", WHOLE + "timeout: true\n", "timeout: must be a duration", 8),
    ("timeout list", WHOLE + "timeout: [1]\n", "timeout: must be a duration", 8),
    ("timeout infinite", WHOLE + "timeout: .inf\n", "is not a duration", 8),
    ("timeout nan", WHOLE + "timeout: .nan\n", "is not a duration", 8),
    ("timeout huge", WHOLE + f"timeout: 0x{'f' * 400}\n", "a huge number is not a duration", 8),
    ("timeout sexagesimal", WHOLE + "timeout: 1:30\n", "'1:30' is not a duration", 8),
    ("phase a text", HEAD + "- a\n", "phases[0]: must be a mapping, not text", 3),
    ("phase null", HEAD + "-\n", "phases[0]: must be a mapping", 3),
    ("phase a list", HEAD + "- [a]\n", "phases[0]: must be a mapping, not a list", 3),
    ("phase without id", HEAD + "- name: A\n", "phases[0].id: is required", 3),
    ("phase without name", HEAD + "- id: a\n", "phases[0].name: is required", 3),
    ("phase without operations", PHASE, "phases[0].operations: is required", 3),
    ("phase id upper case", WHOLE.replace("id: a", "id: A"), "must be 1 to 64 characters of a-z", 3),
    ("phase id empty", WHOLE.replace("id: a", "id: ''"), "must be 1 to 64 characters", 3),
    ("phase id path", WHOLE.replace("id: a", "id: ../a"), "must be 1 to 64 characters", 3),
    ("phase id line feed", WHOLE.replace("id: a", 'id: "a\\n"'), "must be 1 to 64 characters", 3),
    ("phase id long", WHOLE.replace("id: a", "id: " + "a" * 65), "must be 1 to 64 characters", 3),
    ("phase id number", WHOLE.replace("id: a", "id: 7"), "id: must be text, not the number 7", 3),
    ("phase id reference", WHOLE.replace("id: a", "id: ${feature}"), "must be 1 to 64 characters", 3),
    ("phase name long", WHOLE.replace("name: A", "name: " + "x" * 51), "at most 50 long, not 51", 4),
    ("phase unknown field", WHOLE + "  depends: [b]\n", "unknown field, did you mean", 8),
    ("threshold above", WHOLE + "  success_threshold: 1.5\n", "must be less than or equal to 1", 8),
    ("threshold below", WHOLE + "  success_threshold: -1\n", "must be greater than or equal to 0", 8),
    ("threshold text", WHOLE + "  success_threshold: '1'\n", "must be a number, not text", 8),
    ("threshold nan", WHOLE + "  success_threshold: .nan\n", "must be a finite number", 8),
    ("dependencies text", WHOLE + "  dependencies: b\n", "must be a list of phase ids, not text", 8),
    ("dependencies null", WHOLE + "  dependencies:\n", "must be a list of phase ids, not nothing", 8),
    ("dependency a number", WHOLE + "  dependencies: [1]\n", "dependencies[0]: must be the id of a phase", 8),
    ("dependency a list", WHOLE + "  dependencies: [[a]]\n", "dependencies[0]: must be the id of a phase", 8),
    ("dependency missing", two(second=", dependencies: [c]"), "there is no phase 'c'", 6),
    ("dependency misspelt", two(second=", dependencies: [aa]"), "there is no phase 'aa', did you mean 'a'?", 6),
    ("dependency twice", two(second=", dependencies: [a, a]"), "'a' is listed twice", 6),
    ("dependency on itself", two(second=", dependencies: [b]"), "\n  b → b\n  Fix: remove the circular dependency", 6),
    (
        "cycle",
        two(", dependencies: [b]", ", dependencies: [a]"),
        "Cycle detected in workflow dependencies:\n  a → b → a",
        4,
    ),
    ("same phase id", two().replace("id: b", "id: a"), "phases[1].id: the id 'a' is already that of phases[0]", 5),
    ("operations null", PHASE + "  operations:\n", "must be a list or a mapping, not nothing", 5),
    ("operations empty", PHASE + "  operations: []\n", "operations: must not be empty", 5),
    ("operations text", PHASE + "  operations: ls\n", "must be a list or a mapping, not text", 5),
    ("operations of texts", PHASE + "  operations: [ls]\n", "operations[0]: must be a mapping, not text", 5),
    ("operation empty", PHASE + "  operations: {}\n", "operations.type: is required: python, command, mcp or llm", 5),
    (
        "type misspelt",
        PHASE + "  operations: {type: pyhton}\n",
        "unknown operation type 'pyhton', did you mean 'python'?",
        5,
    ),
    ("type unknown", PHASE + "  operations: {type: zzz}\n", "unknown operation type 'zzz', known: python, command", 5),
    (
        "tool without a server",
        PHASE + "  operations: {type: command, argv: [a], policy: {tool: [search]}}\n",
        "must be server/tool, or server/* for all tools of a server",
        5,
    ),
    (
        "every tool",
        PHASE + "  operations: {type: command, argv: [a], policy: {tool: ['*']}}\n",
        "must be server/tool, or server/* for all tools of a server",
        5,
    ),
    (
        "tool above its server",
        PHASE + "  operations: {type: command, argv: [a], policy: {tool: [a/..]}}\n",
        "must be server/tool, or server/* for all tools of a server",
        5,
    ),
    ("llm without a model", PHASE + "  operations: {type: llm}\n", "operations.model: is required", 5),
    ("mcp without a tool", PHASE + "  operations: {type: mcp}\n", "operations.tool: is required", 5),
    (
        "mcp server only",
        PHASE + "  operations: {type: mcp, tool: time}\n",
        "operations.tool: must be one tool of one server",
        5,
    ),
    (
        "mcp pattern",
        PHASE + "  operations: {type: mcp, tool: 'time/*'}\n",
        "operations.tool: must be one tool of one server",
        5,
    ),
    (
        "mcp reference",
        PHASE + "  operations: {type: mcp, tool: 'a/${feature}'}\n",
        "operations.tool: must be one tool of one server",
        5,
    ),
    ("mcp policy", PHASE + "  operations: {type: mcp, tool: a/b, policy: {read: [x]}}\n", "unknown field", 5),
    (
        "mcp params",
        PHASE + "  operations: {type: mcp, tool: a/b, params: [1]}\n",
        "of a tool are a mapping, not a list",
        5,
    ),
    (
        "type a number",
        PHASE + "  operations: {type: 1}\n",
        "must be python, command, mcp or llm, not the number 1",
        5,
    ),
    (
        "type a list",
        PHASE + "  operations: {type: [python]}\n",
        "must be python, command, mcp or llm, not a list",
        5,
    ),
    ("type null", PHASE + "  operations: {type: }\n", "must be python, command, mcp or llm, not nothing", 5),
    ("operation id", WHOLE + "    id: A_b\n", "operations.id: must be 1 to 64 characters", 8),
    (
        "same operation id",
        PHASE + "  operations:\n  - {type: command, argv: [a], id: x}\n  - {type: command, argv: [a], id: x}\n",
        "operations[1].id: the id 'x' is already that of operations[0]",
        7,
    ),
    (
        "operation id that is another's default",
        PHASE + "  operations:\n  - {type: command, argv: [a], id: op-2}\n  - {type: command, argv: [a]}\n",
        "the id 'op-2' is already that of operations[0]",
        7,
    ),
    ("operation unknown field", WHOLE + "    retry: 1\n", "retry: unknown field, did you mean 'retries'?", 8),
    ("code in a command", WHOLE + "    code: x\n", "code: unknown field here: it belongs to a python operation", 8),
    ("argv in python", CODE + "    argv: [a]\n", "argv: unknown field here: it belongs to a command operation", 8),
    ("retries many", WHOLE + "    retries: 11\n", "retries: must be less than or equal to 10", 8),
    ("retries negative", WHOLE + "    retries: -1\n", "retries: must be greater than or equal to 0", 8),
    ("retries text", WHOLE + "    retries: 'a'\n", "retries: must be a whole number, not text", 8),
    ("retries boolean", WHOLE + "    retries: true\n", "retries: must be a whole number, not true", 8),
    ("retries fraction", WHOLE + "    retries: 1.5\n", "retries: must be a whole number, not the number 1.5", 8),
    (
        "cache text",
        WHOLE + "    cache: 'no'\n",
        "cache: must be true, false, or {ttl: 7d}",
        8,
    ),
    ("cache no", WHOLE + "    cache: no\n", "cache: must be true, false, or {ttl: 7d}", 8),
    ("cache on", WHOLE + "    cache: on\n", "cache: must be true, false, or {ttl: 7d}", 8),
    ("cache ttl", WHOLE + "    cache: {ttl: soon}\n", "cache: 'soon' is not a duration such as", 8),
    ("cache other", WHOLE + "    cache: {ttl: 7d, size: 1}\n", "cache: must be true, false, or {ttl: 7d}", 8),
    ("cache number", WHOLE + "    cache: 1\n", "cache: must be true, false, or {ttl: 7d}", 8),
    ("operation timeout", WHOLE + "    timeout: 5 parsecs\n", "timeout: '5 parsecs' is not a duration", 8),
    ("argv missing", COMMAND, "argv: is required", 6),
    ("argv text", COMMAND + "    argv: ls -l\n", "argv: must be a list, not text: write [ls -l]", 7),
    ("argv empty", COMMAND + "    argv: []\n", "argv: must not be empty", 7),
    ("argv number", COMMAND + "    argv: [ls, 5]\n", "argv[1]: must be text, not the number 5: put it in quotes", 7),
    ("argv program empty", COMMAND + "    argv: ['']\n", "argv[0]: the program's name must not be empty", 7),
    ("argv NUL", COMMAND + '    argv: [ls, "a\\0b"]\n', "argv[1]: must not hold a NUL character", 7),
    ("argv program by reference", COMMAND + "    argv: ['${feature}']\n", "they cannot name the program", 7),
    ("argv too long", COMMAND + f"    argv: [{'a,' * 10_001}]\n", "argv: must be at most 10,000 long", 7),
    (
        "output unknown",
        WHOLE + "    output: line\n",
        "must be 'text', 'lines' or 'json', not 'line', did you mean 'lines'?",
        8,
    ),
    ("output number", WHOLE + "    output: 1\n", "must be 'text', 'lines' or 'json', not the number 1", 8),
    ("ok_codes empty", WHOLE + "    ok_codes: []\n", "ok_codes: must not be empty", 8),
    ("ok_codes big", WHOLE + "    ok_codes: [256]\n", "ok_codes[0]: must be less than or equal to 255", 8),
    ("ok_codes a number", WHOLE + "    ok_codes: 0\n", "ok_codes: must be a list, not the number 0", 8),
    ("policy a list", WHOLE + "    policy: [read]\n", "policy: must be a mapping, not a list", 8),
    ("policy null", WHOLE + "    policy:\n", "policy: must be a mapping, not nothing", 8),
    ("policy misspelt", WHOLE + "    policy: {raed: [x]}\n", "policy.raed: unknown field, did you mean 'read'?", 8),
    ("policy with a hyphen", WHOLE + "    policy: {write-through: [x]}\n", "did you mean 'write_through'?", 8),
    ("read text", WHOLE + "    policy: {read: src}\n", "policy.read: must be a list, not text: write [src]", 8),
    ("read a number", WHOLE + "    policy: {read: [1]}\n", "policy.read[0]: must be text, not the number 1", 8),
    ("read empty", WHOLE + "    policy: {read: ['']}\n", "policy.read[0]: must not be empty nor hold control", 8),
    ("read control", WHOLE + '    policy: {read: ["a\\e"]}\n', "nor hold control characters", 8),
    (
        "read reference",
        WHOLE + "    policy: {read: ['${params.x}']}\n",
        "references (${...}) are data: they cannot stand here",
        8,
    ),
    ("net reference", WHOLE + "    policy: {net: ['${feature}:1']}\n", "they cannot stand here", 8),
    ("loopback text", WHOLE + "    policy: {loopback: 'true'}\n", "loopback: must be true or false, not text", 8),
    ("env name", WHOLE + "    policy: {env: [A-B]}\n", "env[0]: must be the name of an environment variable", 8),
    ("limits list", WHOLE + "    limits: []\n", "limits: must be a mapping, not a list", 8),
    ("limits misspelt", WHOLE + "    limits: {mem: 1M}\n", "limits.mem: unknown field, did you mean 'memory'?", 8),
    ("memory text", WHOLE + "    limits: {memory: lots}\n", "memory: 'lots' is not a size", 8),
    ("memory negative", WHOLE + "    limits: {memory: -1}\n", "memory: -1 is not a size", 8),
    ("memory float", WHOLE + "    limits: {memory: 1.5}\n", "memory: must be a size", 8),
    ("memory endless", WHOLE + f"    limits: {{memory: {'9' * 400}M}}\n", "is not a size", 8),
    ("disk unit", WHOLE + "    limits: {disk: 5X}\n", "disk: '5X' is not a size", 8),
    ("cpu boolean", WHOLE + "    limits: {cpu: true}\n", "cpu: must be a duration", 8),
    ("pids zero", WHOLE + "    limits: {pids: 0}\n", "pids: must be greater than or equal to 1", 8),
    ("pids text", WHOLE + "    limits: {pids: many}\n", "pids: must be a whole number, not text", 8),
    ("keep list", WHOLE + "    keep: [a]\n", "keep: must be a mapping, not a list", 8),
    ("keep misspelt", WHOLE + "    keep: {field: [a]}\n", "keep.field: unknown field, did you mean 'fields'?", 8),
    ("keep nothing", WHOLE + "    keep: {max_bytes: 0}\n", "max_bytes: must be greater than or equal to 1", 8),
    ("python without code", PYTHON, "operations: code (or file) is required", 6),
    ("code a list", PYTHON + "    code: [a]\n", "code: must be text, not a list", 7),
    ("code without run", PYTHON + "    code: 'def ran(): pass'\n", "no function named run, did you mean 'ran'?", 7),
    ("code empty", PYTHON + "    code: ''\n", "no function named run: define run(params, inputs, tools)", 7),
    ("code broken", PYTHON + "    code: |\n      def run():\n          return 1 +\n", "not Python: invalid syntax", 9),
    ("code broken inline", PYTHON + '    code: "def run():\\n return 1 +"\n', "(line 2 of the code)", 7),
    (
        "code async",
        PYTHON + "    code: |\n\n      async def run(): pass\n",
        "run must be a plain function, not async",
        9,
    ),
    ("code wants more", PYTHON + "    code: 'def run(params, secrets): pass'\n", "nothing is passed for 'secrets'", 7),
    ("code NUL", PYTHON + '    code: "def run(): pass\\0"\n', "it holds a NUL character", 7),
    ("code deep", PYTHON + f"    code: 'x = {'-' * 50_000}1'\n", "not Python: nested too deeply", 7),
    ("code deep attributes", PYTHON + f"    code: 'x = a{'.b' * 50_000}'\n", "not Python: nested too deeply", 7),
    ("code and file", CODE + "    file: a.py\n", "file: there is code too: one of the two must go", 8),
    ("file above", PYTHON + "    file: ../a.py\n", "'../a.py' must be a plain path beneath", 7),
    ("file absolute", PYTHON + "    file: /etc/passwd.py\n", "must be a plain path beneath", 7),
    ("file hidden", PYTHON + "    file: .a/b.py\n", "must not be a hidden name", 7),
    ("file not python", PYTHON + "    file: a.txt\n", "must be a *.py file", 7),
    ("file missing", PYTHON + "    file: no.py\n", "'no.py' there is no such file", 7),
    ("file reference", PYTHON + "    file: ${feature}.py\n", "they cannot stand here", 7),
    ("files above", CODE + "    files: [../a.py]\n", "files[0]: '../a.py' must be a plain path", 8),
    ("files text", CODE + "    files: a.py\n", "files: must be a list, not text: write [a.py]", 8),
    ("packages", CODE + "    packages: [../x]\n", "must be the name of a distribution, such as numpy", 8),
    ("code checked though a limit is wrong", PYTHON + "    limits: 1\n    code: 'def'\n", "code: not Python", 8),
    ("params infinite", WHOLE + "    params: {a: [.inf]}\n", "operations.params.a[0]: must be a finite number", 8),
    ("params reference unknown", WHOLE + "    params: ${x.y}\n", "'${x.y}': there is no 'x' here", 8),
    ("params reference to no parameter", WHOLE + "    params: ${params.x}\n", "there is no parameter 'x'", 8),
    ("params reference open", WHOLE + "    params: 'a ${b'\n", "is no reference", 8),
    ("params reference empty", WHOLE + "    params: 'a ${}'\n", "is no reference", 8),
    ("params reference with an expression", WHOLE + "    params: '${1 + 1}'\n", "is no reference", 8),
    ("params reference to itself", WHOLE + "    params: ${a.x}\n", "a phase cannot refer to its own result", 8),
    ("feature has no parts", WHOLE + "    params: ${feature.x}\n", "the feature is a text", 8),
    ("parameters list", WHOLE + "parameters: [a]\n", "parameters: must be a mapping, not a list", 8),
    ("parameter name", WHOLE + "parameters: {1a: {type: string}}\n", "must be a name of letters", 8),
    ("parameter type", WHOLE + "parameters: {a: {type: int}}\n", "did you mean 'integer'?", 8),
    ("parameter without type", WHOLE + "parameters: {a: {}}\n", "parameters.a.type: is required", 8),
    ("parameter a text", WHOLE + "parameters: {a: string}\n", "parameters.a: must be a mapping, not text", 8),
    ("parameter misspelt", WHOLE + "parameters: {a: {type: string, defualt: x}}\n", "did you mean 'default'?", 8),
    ("default of another type", WHOLE + "parameters: {a: {type: integer, default: x}}\n", "must be of type integer", 8),
    ("default boolean for integer", WHOLE + "parameters: {a: {type: integer, default: true}}\n", "of type integer", 8),
    (
        "required with a default",
        WHOLE + "parameters: {a: {type: integer, required: true, default: 1}}\n",
        "cannot have a default",
        8,
    ),
    ("tab", "name: n\n\tphases: 1\n", "not YAML:", 2),
    ("unclosed list", "name: [a\n", "not YAML:", 2),
    ("unclosed quote", 'name: "a\n', "not YAML:", 2),
    ("bad indentation", "name: n\n  phases: []\n", "not YAML:", 2),
    ("at sign", "name: @a\n", "quote text that starts with @", 1),
    ("directive", "%FOO\n---\n", "not YAML:", 1),
    ("two documents", WHOLE + "---\n" + WHOLE, "only one YAML document is allowed", 8),
    ("unknown alias", "name: *x\n", "not YAML: found undefined alias", 1),
    ("alias of itself", WHOLE + "    params: &x [*x]\n", "an alias stands inside what it refers to", 8),
    ("merge key", "x: &x {a: b}\ny:\n  <<: *x\n", "merge keys (<<) are not allowed", 3),
    ("same key", WHOLE + "name: m\n", "name: the key is there twice", 8),
    ("same key deep", WHOLE + "    params: {a: 1, a: 2}\n", "params.a: the key is there twice", 8),
    ("number as a key", WHOLE + "    params: {1: a}\n", "a key must be text: put it in quotes", 8),
    ("list as a key", WHOLE + "    params: {[a]: b}\n", "a key must be text", 8),
    ("python tag", "name: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system' is not allowed", 1),
    ("own tag", "name: !secret x\n", "the tag '!secret' is not allowed", 1),
    ("timestamp tag", WHOLE + "    params: !!timestamp 2020-01-01\n", "timestamp' is not allowed", 8),
    ("binary tag", WHOLE + "    params: !!binary aGk=\n", "binary' is not allowed", 8),
    ("set tag", WHOLE + "    params: !!set {a}\n", "set' is not allowed", 8),
    ("integer that is none", WHOLE + "    params: !!int x\n", "'x' is not what its tag says", 8),
    ("list tag on a mapping", WHOLE + "    params: !!seq {a: b}\n", "seq' is not allowed", 8),
    ("control character", "name: a\x07b\n", "a control character (U+0007) is not allowed", 1),
    ("endless number", WHOLE + f"    params: {'9' * 5_000}\n", "the number has too many digits", 8),
    ("deep", "a: " + "[" * 70 + "]" * 70, "nested deeper than 64 levels", 1),
    ("very deep", "[" * 500_000, "nested deeper than 64 levels", 1),
    ("deep by indentation", "".join(f"{' ' * n}a:\n" for n in range(100)), "nested deeper than 64 levels", 64),
    ("many values", "a: [" + "a," * 210_000 + "]", "more than 200,000 values", 1),
    ("large", "#" * (1 << 20) + "\n", "larger than 1 MiB", 0),
    (
        "many fields",
        WHOLE + "".join(f"    k{n}: 1\n" for n in range(1_001)),
        "a mapping here has more than 1,000 fields",
        6,
    ),
]


def one_json(operation):
    return f'{{"name": "n",\n"phases": [{{"id": "a", "name": "A",\n"operations": {operation}}}]}}'


START = '{"type": "command", "argv": ["a"]'
TOML_HEAD = 'name = "n"\n[[phases]]\nid = "a"\nname = "A"\n'
TOML_COMMAND = TOML_HEAD + '[phases.operations]\ntype = "command"\nargv = ["a"]\n'
TOML_PYTHON = TOML_HEAD + '[[phases.operations]]\ntype = "python"\n'
TOML_LINE = 'operations = {type = "command", argv = ["a"]}\n'

JSON = [
    ("empty", "", "not JSON: expecting value", 1),
    ("null", "null", "must be a mapping, not nothing", 1),
    ("cut", '{"name": "n",', "not JSON:", 1),
    ("comma", '{"name": "n",\n}', "not JSON:", 2),
    ("comment", '{} // {"', "not JSON: extra data", 1),
    ("two", "{}\n{}", "not JSON: extra data", 2),
    ("single quotes", "{'name': 1}", "not JSON:", 1),
    ("raw line feed in a text", '{"name": "a\nb"}', "not JSON: invalid control character", 1),
    ("same key", '{"name": "n",\n"name": "m"}', "name: the key is there twice", 1),
    (
        "same key deep",
        one_json(START + ', "params": {"b": [{"a": 1, "a": 2}]}}'),
        "params.b[0].a: the key is there twice",
        3,
    ),
    ("NaN", one_json(START + ', "params": NaN}'), "params: must be a finite number", 3),
    ("overflow", one_json(START + ', "params": [1e999]}'), "params[0]: must be a finite number", 3),
    ("half a pair", one_json('{"type": "command", "argv": ["\\ud800"]}'), "argv[0]: holds half of a surrogate pair", 3),
    ("half a pair in a key", one_json(START + ', "params": {"\\udc00": 1}}'), "params: holds half", 3),
    ("deep", "[" * 100_000, "nested deeper than 64 levels", 1),
    ("deep params", one_json(START + ', "params": ' + "[" * 100 + "]" * 100 + "}"), "nested deeper than 64", 3),
    ("endless number", f'{{"name":\n{"9" * 5_000}}}', "a number has too many digits", 2),
    ("many values", one_json(START + ', "params": [' + "0," * 200_000 + "0]}"), "more than 200,000 values", 3),
    ("wrong deep inside", one_json(START + ',\n"policy": {"read": ["x",\n7]}}'), "policy.read[1]: must be text", 5),
    ("missing inside", one_json('{"type": "command"}'), "operations.argv: is required", 3),
    ("unknown inside", one_json(START + ',\n"retry": 1}'), "operations.retry: unknown field", 4),
]

TOML = [
    ("empty", "", "name: is required", 1),
    ("no value", "name =\n", "not TOML: invalid value", 1),
    ("same key", 'name = "n"\nname = "m"\n', "not TOML: cannot overwrite a value", 2),
    ("cut", 'name = "n', "not TOML:", 1),
    ("deep", "a = " + "[" * 5_000, "nested deeper than 64 levels", 1),
    ("deep key", ".".join("a" * 100) + " = 1", "nested deeper than 64 levels", 1),
    ("endless number", "a = " + "9" * 5_000, "a number has too many digits", 1),
    ("date", TOML_COMMAND + "params = 2020-01-01\n", "params: a date is not allowed here: put it in quotes", 8),
    (
        "second phase",
        TOML_HEAD + TOML_LINE + '[[phases]]\nid = "B"\nname = "B"\n' + TOML_LINE,
        "phases[1].id: must be 1 to 64",
        7,
    ),
    ("unknown table", 'name = "n"\n[phazes]\na = 1\n', "phazes: unknown field, did you mean 'phases'?", 2),
    ("code", TOML_PYTHON + 'code = """\ndef run():\n    return 1 +\n"""\n', "not Python: invalid syntax", 9),
    ("code on one line", TOML_PYTHON + 'code = "x ="\n', "(line 1 of the code)", 7),
    ("huge hexadecimal", TOML_COMMAND + "params = 0x" + "f" * 5_000 + "\n", "the number has too many digits", 8),
]

BYTES = [
    ("latin-1", "yaml", b"name: n\n# \xe4\n", "not UTF-8", 2),
    ("utf-16", "yaml", "name: n\n".encode("utf-16"), "it looks like UTF-16", 1),
    ("utf-16 without mark", "json", "{}".encode("utf-16-le"), "it looks like UTF-16", 1),
    ("cut character", "json", b'{"a": "\xc3"}', "not UTF-8", 1),
    ("overlong", "toml", b"a = '\xc0\xaf'", "not UTF-8", 1),
    ("surrogate", "json", b'{"a": "\xed\xa0\x80"}', "not UTF-8", 1),
]

CASES = [
    *(pytest.param("yaml", text.encode(), said, line, id=f"yaml-{name}") for name, text, said, line in YAML),
    *(pytest.param("json", text.encode(), said, line, id=f"json-{name}") for name, text, said, line in JSON),
    *(pytest.param("toml", text.encode(), said, line, id=f"toml-{name}") for name, text, said, line in TOML),
    *(pytest.param(kind, content, said, line, id=f"bytes-{name}") for name, kind, content, said, line in BYTES),
]


def test_the_corpus_is_large_enough():
    assert len(CASES) + len(CUTS) >= 300


@pytest.mark.parametrize(("kind", "content", "said", "line"), CASES)
def test_malformed_template_is_explained(kind, content, said, line, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / f"t.{kind}").write_bytes(content)
    monkeypatch.chdir(folder)

    code = main(["validate", f"t.{kind}"])
    out, err = capsys.readouterr()

    assert 2 == code
    assert "" == out
    assert said in err
    assert "Traceback" not in err
    assert "internal error" not in err
    blocks = [block for block in ("\n" + err).split("\n✗ ") if said in block]
    assert any(block.startswith(f"t.{kind}:{line}:" if line else f"t.{kind}: ") for block in blocks), blocks
    assert [f"t.{kind}"] == [path.name for path in folder.iterdir()]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VALID = {
    "name": "n",
    "timeout": "1m",
    "parameters": {"p": {"type": "integer", "default": 1}},
    "phases": [
        {"id": "a", "name": "A", "operations": {"type": "command", "argv": ["ls"], "policy": {"read": ["."]}}},
        {
            "id": "b",
            "name": "B",
            "dependencies": ["a"],
            "operations": [{"type": "python", "code": "def run(): pass", "limits": {"memory": "1M"}}],
        },
    ],
}


WHOLE = json.dumps(VALID, indent=1)
CUTS = [round(len(WHOLE) * part / 101) for part in range(101)]


@pytest.mark.parametrize("cut", CUTS)
def test_a_template_that_ends_early_is_explained(cut, tmp_path, monkeypatch, capsys):
    (tmp_path / "t.json").write_text(WHOLE[:cut])
    monkeypatch.chdir(tmp_path)

    code = main(["validate", "t.json"])
    out, err = capsys.readouterr()

    assert 2 == code
    assert "" == out
    assert err.startswith("✗ t.json:")
    assert 1 == err.count("✗")
    assert "Traceback" not in err
    assert "internal error" not in err
    assert ["t.json"] == [path.name for path in tmp_path.iterdir()]


def places(value, path=()):
    """Every path below a value."""
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield (*path, step)
        yield from places(value[step], (*path, step))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(list(places(VALID))), value=JSON_VALUES, drop=st.booleans())
def test_a_template_with_anything_anywhere_is_loaded_or_explained(path, value, drop):
    data = json.loads(json.dumps(VALID))
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    if drop:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value

    report = inspect_text(json.dumps(data), "json")

    assert (report.workflow is None) == any(problem.severity == "error" for problem in report.problems)
    assert all(problem.line >= 1 and problem.column >= 1 for problem in report.problems)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=60) | st.text("{}[]:,-&*!|>'\"%@`#?\n ax0", max_size=60),
    kind=st.sampled_from(["yaml", "json", "toml"]),
)
def test_any_text_at_all_is_refused_with_a_reason(text, kind):
    report = inspect_text(text, kind)

    assert report.workflow is None
    assert report.problems


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60), kind=st.sampled_from(["yaml", "json", "toml"]))
def test_any_bytes_at_all_are_refused_with_a_reason(content, kind):
    assert inspect_text(content, kind).problems
