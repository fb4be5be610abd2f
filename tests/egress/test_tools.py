"""What people use goes through the proxy unchanged, where it is installed: over http, and over https in a tunnel."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import http.server
import importlib.util
import ipaddress
import json
import shutil
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.operations.confining import supervisor as confining
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import GiB, Limits, Policy
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.supervisor import Supervisor

SAID = "said by a host outside\n"
LIMITS = Limits(memory=GiB, pids=64, timeout_s=60)


@dataclass(frozen=True)
class Site:
    """A folder served on loopback twice: in the clear, and with a certificate that ``ca`` vouches for."""

    folder: Path
    http: int
    https: int
    ca: str

    def policy(self, **more: object) -> Policy:
        hosts = (f"127.0.0.1:{self.http}", f"127.0.0.1:{self.https}")
        return Policy(read=(str(self.folder),), net=hosts, **more)  # type: ignore[arg-type]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = Path(tmp_path_factory.mktemp("site")).resolve()
    (folder / "said.txt").write_text(SAID)
    certificate = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, folder / "private")
    with ExitStack() as stack:
        ports = []
        for secured in (False, True):
            made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
            if secured:
                made.socket = context.wrap_socket(made.socket, server_side=True)
            threading.Thread(target=made.serve_forever, daemon=True).start()
            stack.callback(made.server_close)
            stack.callback(made.shutdown)
            ports.append(made.server_port)
        (folder / "private").unlink()
        yield Site(folder, ports[0], ports[1], str(certificate))


def _certificate(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "private").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "ca.crt"


@pytest.fixture(scope="module")
def box(site: Site) -> Iterator[Supervisor]:
    made = confining(str(site.folder))
    try:
        made.prepare()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield made
    made.close()


Call = Callable[..., Outcome]


@pytest.fixture
def python(box: Supervisor, site: Site) -> Call:
    """A Python operation that may use these packages, and gets both addresses."""

    def run(code: str, *packages: str, **params: object) -> Outcome:
        for package in packages:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        given = {"http": f"http://127.0.0.1:{site.http}", "https": f"https://127.0.0.1:{site.https}", "ca": site.ca}
        job = Job(
            "python",
            code=code,
            params=json.dumps({**given, **params}).encode(),
            packages=packages,
            policy=site.policy(),
            project=box.project,
            limits=LIMITS,
        )
        return done(box.run(job))

    return run


@pytest.fixture
def command(box: Supervisor, site: Site) -> Call:
    def run(*argv: str, **more: object) -> Outcome:
        if shutil.which(argv[0], path="/usr/local/bin:/usr/bin:/bin") is None:
            pytest.skip(f"{argv[0]} is not installed")
        policy = site.policy()
        job = Job("command", argv=argv, policy=policy, project=box.project, limits=LIMITS, **more)  # type: ignore[arg-type]
        return box.run(job)

    return run


def done(outcome: Outcome) -> Outcome:
    assert outcome.ok, f"{outcome.error}\n{outcome.hint}\n{outcome.stderr.decode()}"
    assert {"allowed"} == {contact.verdict for contact in outcome.contacts}
    return outcome


def test_urllib(python):
    code = """
import ssl, urllib.request
def run(params):
    context = ssl.create_default_context(cafile=params["ca"])
    return [urllib.request.urlopen(params[kind] + "/said.txt", context=context).read().decode()
            for kind in ("http", "https")]
"""
    assert [SAID, SAID] == python(code).value()


BODY = "import hashlib\nBODY = bytes(range(256)) * 2000\nSAID = hashlib.sha256(BODY).hexdigest()\n"


def test_requests(python):
    code = (
        BODY
        + """
import requests
def run(params):
    found = [requests.get(params[kind] + "/said.txt", verify=params["ca"]).text for kind in ("http", "https")]
    for body in (BODY, iter([BODY[:1000], BODY[1000:]])):
        assert requests.post(params["http"], data=body).text == SAID
    with requests.Session() as session:
        found += [session.get(params["http"] + "/said.txt").text for _ in range(3)]
    return found
"""
    )
    assert [SAID] * 5 == python(code, "requests").value()


def test_httpx(python):
    code = (
        BODY
        + """
import httpx, ssl
def run(params):
    context = ssl.create_default_context(cafile=params["ca"])
    with httpx.Client(verify=context) as client:
        found = [client.get(params[kind] + "/said.txt").text for kind in ("http", "https", "http", "https")]
        assert client.post(params["http"], content=BODY).text == SAID
    return found
"""
    )
    assert [SAID] * 4 == python(code, "httpx").value()


@pytest.mark.parametrize("kind", ["http", "https"])
def test_curl(kind, command, site):
    url = f"{kind}://127.0.0.1:{getattr(site, kind)}/said.txt"

    assert SAID == done(command("curl", "-sS", "--fail", "--cacert", site.ca, url)).value()


def test_curl_sends_a_large_body(command, site):
    (site.folder / "large").write_bytes(bytes(300_000))
    outcome = command("curl", "-sS", "--data-binary", "@large", f"http://127.0.0.1:{site.http}/")

    assert hashlib.sha256(bytes(300_000)).hexdigest() == done(outcome).value()


def test_curl_says_what_was_refused_and_the_outcome_how_to_allow_it(command):
    outcome = command("curl", "-sS", "https://example.org/")

    assert ("denied", "--allow net:example.org:443") == (outcome.reason, outcome.hint)
    assert "example.org:443: not granted" in outcome.error


@pytest.fixture
def repository(site):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = site.folder / "repo"
    if not folder.exists():
        git = ("git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        (folder / "file").write_text(SAID)
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "-qm", "one"], check=True)
        subprocess.run(["git", "clone", "-q", "--bare", str(folder), f"{folder}.git"], check=True)
        subprocess.run(["git", "-C", f"{folder}.git", "update-server-info"], check=True)
    return "repo.git"


def test_git_over_https(repository, command, site):
    url = f"https://127.0.0.1:{site.https}/{repository}"
    script = f"git -c http.sslCAInfo={site.ca} clone -q {url} /tmp/clone && cat /tmp/clone/file"

    assert SAID == done(command("sh", "-c", script)).value()


@pytest.mark.parametrize("url", ["ssh://git@127.0.0.1/x.git", "git@example.org:x.git", "git://example.org/x.git"])
def test_git_refuses_by_name_what_cannot_go_through_a_proxy(url, command):
    outcome = command("git", "ls-remote", url)

    assert not outcome.ok
    assert "not allowed" in outcome.error
    assert "only http and https go through the proxy: use the repository's https:// address" == outcome.hint


def test_pip(python, site):
    name = "sage_tide_table"
    wheel = site.folder / "simple" / name.replace("_", "-") / f"{name}-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    code = """
import os
from pip._internal.cli.main import main
def run(params):
    for kind in ("http", "https"):
        main(["download", "-q", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--cert", params["ca"],
              "--index-url", params[kind] + "/simple", "-d", "/tmp/" + kind, "sage-tide-table"])
    return [os.listdir("/tmp/" + kind) for kind in ("http", "https")]
"""
    assert [[wheel.name]] * 2 == python(code, "pip").value()


def test_node(command, site):
    source = f"fetch('http://127.0.0.1:{site.http}/said.txt').then(r => r.text()).then(t => process.stdout.write(t))"
    version = command("node", "--version")
    major, minor = (int(part) for part in version.value().strip().lstrip("v").split(".")[:2]) if version.ok else (0, 0)
    if (major, minor) < (24, 0) and not (major == 22 and minor >= 21):
        pytest.skip(f"node {major}.{minor} does not read NODE_USE_ENV_PROXY")

    assert SAID == done(command("node", "-e", source)).value()
