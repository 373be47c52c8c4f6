"""WinRM of the Windows target: WS-Management's shell protocol ([MS-WSMV], [MS-WSMAN]) over HTTP 5985 and HTTPS 5986.

Stands in for the WinRM service, which Wine has not. What it is asked to run is run by resident.exe in Wine, by the real command
prompt, in a job object. Signing in is real as well: NTLM by pyspnego's server side, over HTTP with every message encrypted, over HTTPS with
the channel binding compared; Basic over HTTPS only.

It knows Create, Command, Send, Receive, Signal and Delete of the shell `cmd`, and the limits that a Windows has by default: how large an envelope may be,
how many shells and commands there are, when an operation that waits is answered "timed out", when an idle shell ends.

What it cannot show: Kerberos, CredSSP, certificates of users; how long Windows takes; memory limits of a shell; and who may do what: nobody but
members of Administrators (here: Administrator) gets a shell, all else that Windows decides by the user's token is not decided.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import spnego

RESIDENT = ("127.0.0.1", 47000)
SETTINGS = Path("/etc/sojourn-lab/winrm")
ADMINISTRATORS = {"administrator"}

# What `winrm get winrm/config` says on a Windows Server 2016 that nobody changed.
MAX_ENVELOPE = 500 * 1024
MAX_SHELLS = 30
MAX_COMMANDS = 25
OPERATION_SECONDS = 60.0
IDLE_SECONDS = 7200.0

SHELL_URI = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
NAMES = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "rsp": SHELL_URI,
}
PROTOCOL = "application/HTTP-SPNEGO-session-encrypted"

# WSManFault codes (winerror.h and wsmerror.h).
ACCESS_DENIED, TIMED_OUT, NO_SUCH_SHELL, QUOTA_SHELLS, QUOTA_COMMANDS, TOO_LARGE, BROKEN_PIPE = (
    *(5, 2150858793, 2150858843, 2150859173, 2150859174, 2150858761, 232),
)


class Fault(Exception):
    """A SOAP fault."""

    def __init__(self, code: int, subcode: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.subcode, self.reason = code, subcode, reason


class Command:
    """A process of resident.exe, and what it has said."""

    def __init__(self, line: str, shell: Shell) -> None:
        self._wire = socket.create_connection(RESIDENT, timeout=30)
        self._wire.settimeout(None)
        order = {"Line": rf"C:\windows\system32\cmd.exe /C {line}", "Folder": shell.folder, "Variables": shell.variables}
        self._wire.sendall(f"run {json.dumps(order)}\n".encode())
        self._news = threading.Condition()
        self._said: list[tuple[str, bytes]] = []
        self.exit_code: int | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        reader = self._wire.makefile("rb")
        code = 1
        with contextlib.suppress(OSError):
            while head := reader.read(5):
                kind, size = head[:1], struct.unpack("<I", head[1:])[0]
                data = reader.read(size)
                if kind == b"x":
                    code = struct.unpack("<I", data)[0]
                    break
                with self._news:
                    self._said.append(("stdout" if kind == b"o" else "stderr", data))
                    self._news.notify_all()
        with self._news:
            self.exit_code = code
            self._news.notify_all()

    def send(self, data: bytes, end: bool) -> None:
        """Standard input."""
        if self.exit_code is not None:
            raise Fault(BROKEN_PIPE, "w:InternalError", "The pipe is being closed.")
        for part in (data, b"") if end else (data,):
            if part or end:
                self._wire.sendall(b"i" + struct.pack("<I", len(part)) + part)

    def receive(self, seconds: float) -> tuple[list[tuple[str, bytes]], int | None]:
        """What it has said since, once there is something, or that it has ended."""
        with self._news:
            if not self._news.wait_for(lambda: self._said or self.exit_code is not None, seconds):
                raise Fault(TIMED_OUT, "w:TimedOut", "The WS-Management service cannot complete the operation within the time specified in OperationTimeout.")
            said, self._said = self._said, []
            return said, self.exit_code

    def end(self) -> None:
        """With all that it has started."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        self._wire.close()


class Shell:
    """One shell of one user."""

    def __init__(self, user: str, folder: str, variables: list[str], idle_seconds: float) -> None:
        self.user, self.folder, self.variables = user, folder, variables
        self.name = str(uuid.uuid4()).upper()
        self.commands: dict[str, Command] = {}
        self._idle_seconds = idle_seconds
        self._used = 0
        self.idle_since = time.monotonic()

    @contextlib.contextmanager
    def in_use(self) -> Any:
        """For as long as an operation on it lasts."""
        self._used += 1
        try:
            yield
        finally:
            self._used -= 1
            self.idle_since = time.monotonic()

    def over(self) -> bool:
        """Whether nobody has used it for too long."""
        return not self._used and time.monotonic() - self.idle_since > self._idle_seconds

    def end(self) -> None:
        for command in self.commands.values():
            command.end()


class Shells:
    """All shells, and what is done with them."""

    def __init__(self) -> None:
        self._shells: dict[str, Shell] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._end_idle, daemon=True).start()

    def _end_idle(self) -> None:
        while True:
            time.sleep(1)  # as often as anybody could tell
            with self._lock:
                over = [name for name, shell in self._shells.items() if shell.over()]
                ended = [self._shells.pop(name) for name in over]
            for shell in ended:
                shell.end()

    def answer(self, user: str, message: bytes) -> bytes:
        """The answer to a request. Raises Fault."""
        if len(message) > MAX_ENVELOPE:
            raise Fault(TOO_LARGE, "w:EncodingLimit", "The request exceeds MaxEnvelopeSizekb.")
        envelope = ET.fromstring(message)
        header, body = envelope.find("s:Header", NAMES), envelope.find("s:Body", NAMES)
        action = header.findtext("a:Action", "", NAMES)
        if header.findtext("w:ResourceURI", "", NAMES) != f"{SHELL_URI}/cmd":
            raise Fault(2150858752, "w:InvalidResourceURI", "The resource URI is not known.")
        timeout = re.fullmatch(r"PT([\d.]+)S", header.findtext("w:OperationTimeout", "", NAMES))
        seconds = float(timeout[1]) if timeout else OPERATION_SECONDS
        selector = header.find("w:SelectorSet/w:Selector[@Name='ShellId']", NAMES)
        relates = header.findtext("a:MessageID", "", NAMES)
        if action == f"{TRANSFER}/Create":
            inner = self._create(user, body)
        else:
            with self._lock:
                shell = self._shells.get((selector.text or "").upper() if selector is not None else "")
            if shell is None or shell.user != user:
                raise Fault(NO_SUCH_SHELL, "w:InvalidSelectors", "The request contained invalid selectors for the resource: there is no such shell.")
            with shell.in_use():
                inner = self._do(action, shell, body, seconds)
        return reply(f"{action}Response", inner, relates)

    def _create(self, user: str, body: ET.Element) -> str:
        if user not in ADMINISTRATORS:
            raise Fault(ACCESS_DENIED, "w:AccessDenied", "Access is denied.")
        wanted = body.find("rsp:Shell", NAMES)
        idle = re.fullmatch(r"PT([\d.]+)S", wanted.findtext("rsp:IdleTimeOut", "", NAMES))
        variables = [f"{item.get('Name')}={item.text or ''}" for item in wanted.iterfind("rsp:Environment/rsp:Variable", NAMES)]
        shell = Shell(user, wanted.findtext("rsp:WorkingDirectory", "C:\\users\\root", NAMES), variables, float(idle[1]) if idle else IDLE_SECONDS)
        with self._lock:
            if len(self._shells) >= MAX_SHELLS:
                raise Fault(
                    QUOTA_SHELLS, "w:QuotaLimit", f"The maximum number of concurrent shells for this user has been exceeded ({MAX_SHELLS}).")
            self._shells[shell.name] = shell
        return (
            f'<x:ResourceCreated xmlns:x="{TRANSFER}"><a:Address>/wsman</a:Address><a:ReferenceParameters><w:ResourceURI>{SHELL_URI}/cmd</w:ResourceURI>'
            f'<w:SelectorSet><w:Selector Name="ShellId">{shell.name}</w:Selector></w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>'
            f"<rsp:Shell><rsp:ShellId>{shell.name}</rsp:ShellId><rsp:Owner>{escape(user)}</rsp:Owner></rsp:Shell>"
        )

    def _do(self, action: str, shell: Shell, body: ET.Element, seconds: float) -> str:
        if action == f"{TRANSFER}/Delete":
            with self._lock:
                self._shells.pop(shell.name, None)
            shell.end()
            return ""
        verb = action.removeprefix(f"{SHELL_URI}/")
        if verb == "Command":
            if len(shell.commands) >= MAX_COMMANDS:
                raise Fault(QUOTA_COMMANDS, "w:QuotaLimit", f"The maximum number of concurrent operations has been exceeded ({MAX_COMMANDS}).")
            line = body.find("rsp:CommandLine", NAMES)
            words = [line.findtext("rsp:Command", "", NAMES), *(item.text or "" for item in line.iterfind("rsp:Arguments", NAMES))]
            name = str(uuid.uuid4()).upper()
            shell.commands[name] = Command(" ".join(words), shell)
            return f"<rsp:CommandResponse><rsp:CommandId>{name}</rsp:CommandId></rsp:CommandResponse>"
        if verb == "Send":
            for stream in body.iterfind("rsp:Send/rsp:Stream", NAMES):
                command = self._command(shell, stream.get("CommandId"))
                command.send(base64.b64decode(stream.text or ""), stream.get("End", "").lower() in ("true", "1"))
            return "<rsp:SendResponse/>"
        if verb == "Receive":
            name = body.find("rsp:Receive/rsp:DesiredStream", NAMES).get("CommandId")
            said, code = self._command(shell, name).receive(seconds)
            streams = [f'<rsp:Stream Name="{stream}" CommandId="{name}">{base64.b64encode(data).decode()}</rsp:Stream>' for stream, data in said]
            if code is None:
                state = f'<rsp:CommandState CommandId="{name}" State="{SHELL_URI}/CommandState/Running"/>'
            else:
                streams += [f'<rsp:Stream Name="{stream}" CommandId="{name}" End="true"/>' for stream in ("stdout", "stderr")]
                ended = f"<rsp:ExitCode>{code}</rsp:ExitCode>"
                state = f'<rsp:CommandState CommandId="{name}" State="{SHELL_URI}/CommandState/Done">{ended}</rsp:CommandState>'
            return f"<rsp:ReceiveResponse>{''.join(streams)}{state}</rsp:ReceiveResponse>"
        if verb == "Signal":
            name = body.find("rsp:Signal", NAMES).get("CommandId")
            self._command(shell, name).end()
            shell.commands.pop(name, None)
            return "<rsp:SignalResponse/>"
        raise Fault(2150858763, "a:ActionNotSupported", "The action is not supported.")

    @staticmethod
    def _command(shell: Shell, name: str | None) -> Command:
        command = shell.commands.get(name or "")
        if command is None:
            raise Fault(NO_SUCH_SHELL, "w:InvalidSelectors", "There is no such command.")
        return command


def reply(action: str, inner: str, relates: str) -> bytes:
    """An envelope."""
    spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in NAMES.items())
    header = f"<a:Action>{escape(action)}</a:Action><a:MessageID>uuid:{uuid.uuid4()}</a:MessageID><a:RelatesTo>{escape(relates)}</a:RelatesTo>"
    return f"<s:Envelope {spaces}><s:Header>{header}</s:Header><s:Body>{inner}</s:Body></s:Envelope>".encode()


def fault_reply(fault: Fault) -> bytes:
    """A fault's envelope."""
    space = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
    detail = f'<f:WSManFault xmlns:f="{space}" Code="{fault.code}"><f:Message>{fault.reason}</f:Message></f:WSManFault>'
    code = f"<s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>{fault.subcode}</s:Value></s:Subcode></s:Code>"
    inner = f'<s:Fault>{code}<s:Reason><s:Text xml:lang="en-US">{fault.reason}</s:Text></s:Reason><s:Detail>{detail}</s:Detail></s:Fault>'
    return reply("http://schemas.dmtf.org/wbem/wsman/1/wsman/fault", inner, "")


def binding_of(certificate: bytes) -> spnego.channel_bindings.GssChannelBindings:
    """tls-server-end-point (RFC 5929) of a certificate that is signed with SHA-256, as the target's is."""
    return spnego.channel_bindings.GssChannelBindings(application_data=b"tls-server-end-point:" + hashlib.sha256(certificate).digest())


class Connection(http.server.BaseHTTPRequestHandler):
    """One connection: who signs in does so for all that comes over it."""

    protocol_version = "HTTP/1.1"
    timeout = 300
    server: Server

    def version_string(self) -> str:
        return "Microsoft-HTTPAPI/2.0"

    def setup(self) -> None:
        super().setup()
        self.user = ""
        self.context: Any = None

    def log_message(self, text: str, *values: Any) -> None:
        print(f"{self.client_address[0]}: {text % values}", flush=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.partition("?")[0] != "/wsman":
            self._answer(404, b"")
            return
        try:
            allowed, challenge = self._sign_in(self.headers.get("Authorization", ""))
        except Exception as error:  # whatever it is that a client sent
            self.log_message("%s", f"sign-in refused: {error!r}"[:300])
            self.context, self.user, allowed, challenge = None, "", False, ""
        if not allowed:
            self._refuse(challenge)
            return
        encrypted = self.headers.get("Content-Type", "").startswith("multipart/encrypted")
        if not self.server.tls and not encrypted and body:
            # AllowUnencrypted=false: without a word about it
            self._answer(500, b"")
            return
        if not body:
            self._answer(200, b"", challenge=challenge)
            return
        status = 200
        try:
            content = self._decrypt(body) if encrypted else body
            answer = self.server.shells.answer(self.user, content)
        except Fault as fault:
            status, answer = 500, fault_reply(fault)
        self._answer(status, *(self._encrypt(answer) if encrypted else (answer, "application/soap+xml;charset=UTF-8")))

    def do_GET(self) -> None:
        self._answer(405 if self.path == "/wsman" else 404, b"")

    def _refuse(self, challenge: str) -> None:
        offered = [challenge] if challenge else ["Negotiate", *(['Basic realm="WSMAN"'] if self.server.tls and self.server.basic else [])]
        self.send_response(401)
        for word in offered:
            self.send_header("WWW-Authenticate", word)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, body: bytes, kind: str = "", challenge: str = "") -> None:
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _sign_in(self, given: str) -> tuple[bool, str]:
        """Whether the request may be answered; and what the client is to be told of the sign-in."""
        scheme, _, token = given.partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(token).decode().partition(":")
            user = user.rpartition("\\")[2].lower()
            good = self.server.tls and self.server.basic and password and self.server.users.get(user) == password
            self.user = user if good else ""
            return bool(good), ""
        if scheme == "Negotiate":
            data = base64.b64decode(token)
            if self.context is None or self.context.complete:
                # A new sign-in on the connection.
                self.user = ""
                binding = binding_of(self.server.certificate) if self.server.tls else None
                protocol = "ntlm" if data.startswith(b"NTLMSSP\0") else "negotiate"
                options = spnego.NegotiateOptions.use_ntlm if protocol == "ntlm" else spnego.NegotiateOptions.use_negotiate
                self.context = spnego.server(protocol=protocol, options=options, channel_bindings=binding)
            answer = self.context.step(data)
            challenge = f"Negotiate {base64.b64encode(answer).decode()}" if answer else ""
            if not self.context.complete:
                return False, challenge
            self.user = self.context.client_principal.rpartition("\\")[2].lower()
            return True, challenge
        return bool(self.user and self.context is not None and self.context.complete), ""

    def _decrypt(self, body: bytes) -> bytes:
        """[MS-WSMV] 2.2.9.1."""
        found = re.search(rb"Length=(\d+)\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n", body)
        sealed = body[found.end() :].removesuffix(b"--Encrypted Boundary--\r\n")
        size = struct.unpack("<I", sealed[:4])[0]
        message = self.context.unwrap_winrm(sealed[4 : 4 + size], sealed[4 + size :])
        if len(message) != int(found[1]):
            raise ValueError("the length is not as it was said to be")
        return message

    def _encrypt(self, message: bytes) -> tuple[bytes, str]:
        sealed = self.context.wrap_winrm(message)
        body = (
            f"--Encrypted Boundary\r\n\tContent-Type: {PROTOCOL}\r\n\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length="
            f"{len(message) + sealed.padding_length}\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n"
        ).encode()
        body += struct.pack("<I", len(sealed.header)) + sealed.header + sealed.data + b"--Encrypted Boundary--\r\n"
        return body, f'multipart/encrypted;protocol="{PROTOCOL}";boundary="Encrypted Boundary"'


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One port, for both address families."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, shells: Shells, tls: ssl.SSLContext | None) -> None:
        self.shells, self.tls = shells, tls
        self.basic = not (SETTINGS / "no-basic").exists()
        accounts = (SETTINGS / "accounts").read_text().splitlines()
        self.users = {user.lower(): password for _, user, password in (line.split(":", 2) for line in accounts)}
        self.certificate = ssl.PEM_cert_to_DER_cert((SETTINGS / "certificate.pem").read_text())
        super().__init__(("::", port), Connection)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def finish_request(self, request: socket.socket, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        print(f"{client_address[0]}: {sys.exc_info()[1]!r}", flush=True)


def main() -> None:
    """Until systemd stops it."""
    os.environ["NTLM_USER_FILE"] = str(SETTINGS / "accounts")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(SETTINGS / "certificate.pem", SETTINGS / "key.pem")
    shells = Shells()
    servers = [Server(5985, shells, None), Server(5986, shells, tls)]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    from session import notify

    notify("READY=1")
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
