package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/lease"
)

// Here the real executable is launched, as the way in does it, and must leave nothing.

var executable string

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "agent-test-")
	if err == nil {
		executable = filepath.Join(folder, "agent")
		var text []byte
		text, err = exec.Command(filepath.Join(runtime.GOROOT(), "bin", "go"), "build", "-o", executable, ".").CombinedOutput()
		fmt.Fprint(os.Stderr, string(text))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

// launched is an agent of the test's own, in a folder of its own.
type launched struct {
	run, folder string
	ready       config.Ready
	exitCode    int
	client      *http.Client
	process     int // pidfd
}

func launch(t *testing.T, change func(*config.Config)) *launched {
	t.Helper()
	var id [6]byte
	rand.Read(id[:])
	l := &launched{run: hex.EncodeToString(id[:]), process: -1}
	l.folder = filepath.Join(t.TempDir(), config.Prefix+l.run)
	if err := os.Mkdir(l.folder, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.folder, "agent")
	raw, err := os.ReadFile(executable)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	c := &config.Config{Run: l.run, ClientSHA256: hex.EncodeToString(sum[:]), Ports: config.Ports{First: 62386, Last: 62486}, LeaseSeconds: 60}
	change(c)
	text, _ := json.Marshal(c)
	command := exec.Command(path, "launch")
	command.Stdin = bytes.NewReader(text)
	out, err := command.Output()
	l.exitCode = command.ProcessState.ExitCode()
	if jsonErr := json.Unmarshal(out, &l.ready); jsonErr != nil {
		t.Fatalf("%q, %v", out, err)
	}
	if l.ready.Error != nil {
		return l
	}
	if l.process, err = unix.PidfdOpen(l.ready.ProcessID, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.PidfdSendSignal(l.process, unix.SIGKILL, nil, 0)
		unix.Close(l.process)
		_ = exec.Command("systemctl", "reset-failed", c.Name()).Run()
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(l.ready.Certificate))
	l.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: c.Name(), Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}}}
	t.Cleanup(l.client.CloseIdleConnections)
	return l
}

func (l *launched) call(t *testing.T, operation, inner string) string {
	t.Helper()
	body := `<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><` + operation + ` xmlns="urn:sojourn:deploy:1">` + inner +
		`</` + operation + `></e:Body></e:Envelope>`
	response, err := l.client.Post(fmt.Sprintf("https://localhost:%d/", l.ready.Port), "text/xml", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%d %s %v", response.StatusCode, raw, err)
	}
	return string(raw)
}

// awaitEnd waits for the agent's end.
func (l *launched) awaitEnd(t *testing.T) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.process), Events: unix.POLLIN}}, 20000)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(l.process), Events: unix.POLLIN}}, 20000)
	}
	if n != 1 {
		t.Fatal("the agent does not end", err)
	}
}

// gone waits for the agent's end; then nothing may be left.
func (l *launched) gone(t *testing.T) {
	t.Helper()
	l.awaitEnd(t)
	if _, err := os.Lstat(l.folder); !os.IsNotExist(err) {
		t.Error("its folder is still there", err)
	}
	if _, err := net.DialTimeout("tcp", fmt.Sprintf("localhost:%d", l.ready.Port), time.Second); err == nil {
		t.Error("its port is still open")
	}
}

func TestALifeThatEndsByShutdown(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	if l.exitCode != 0 || l.ready.Run != l.run || l.ready.Port < 62386 || l.ready.BootID == "" || l.ready.FirewallKind == "" {
		t.Fatalf("%d %+v", l.exitCode, l.ready)
	}
	if info, err := os.Stat(l.folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info, err)
	}
	// No executable, no config; the folder itself goes at a boot by tmpfiles.d.
	if entries, _ := os.ReadDir(l.folder); len(entries) != 1 || entries[0].Name() != lease.RecordName {
		t.Error("a reboot would leave", entries)
	}
	if text := l.call(t, "GetInfo", ""); !strings.Contains(text, "<t:Folder>"+l.folder+"</t:Folder>") {
		t.Error(text)
	}
	l.call(t, "Execute", "<CommandLine>sleep 60</CommandLine><SafeToKill>true</SafeToKill>")
	if text := l.call(t, "Shutdown", ""); !strings.Contains(text, "<t:Waiting>0</t:Waiting>") {
		t.Error(text)
	}
	l.gone(t)
}

func TestTheEndWaitsForAnInstallation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "finished")
	for name, end := range map[string]func(t *testing.T, l *launched){
		"the lease's end": func(t *testing.T, l *launched) { l.call(t, "RenewLease", "<Seconds>1</Seconds>") },
		"a shutdown":      func(t *testing.T, l *launched) { l.call(t, "Shutdown", "") },
		"the service manager": func(t *testing.T, l *launched) {
			if err := unix.PidfdSendSignal(l.process, syscall.SIGTERM, nil, 0); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(file)
			l := launch(t, func(*config.Config) {})
			l.call(t, "Execute", "<CommandLine>sleep 1.5; echo done &gt; "+file+"</CommandLine>")
			end(t, l)
			l.gone(t)
			if _, err := os.Stat(file); err != nil {
				t.Error("the installation was interrupted")
			}
		})
	}
}

func TestNotStarted(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	for name, c := range map[string]struct {
		code   string
		change func(*config.Config)
	}{
		"the range is used up": {"SD-601", func(c *config.Config) { c.Ports = config.Ports{First: port, Last: port} }},
		"a bad config":         {"SD-406", func(c *config.Config) { c.Ports = config.Ports{First: 2, Last: 1} }},
	} {
		t.Run(name, func(t *testing.T) {
			l := launch(t, c.change)
			if l.exitCode != 1 || l.ready.Error == nil || l.ready.Error.Code != c.code || l.ready.Port != 0 {
				t.Errorf("%d %+v", l.exitCode, l.ready)
			}
			if _, err := os.Lstat(l.folder); !os.IsNotExist(err) {
				t.Error("its folder is still there", err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, arguments := range [][]string{nil, {"install"}} {
		command := exec.Command(executable, arguments...)
		if text, _ := command.CombinedOutput(); command.ProcessState.ExitCode() != 2 || !strings.Contains(string(text), "usage") {
			t.Errorf("%q", text)
		}
	}
	if text, err := exec.Command(executable, "version").Output(); err != nil || string(text) != version+"\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// processes gives those whose executable is, or was, the launched agent's.
func (l *launched) processes() (ids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.TrimSuffix(target, " (deleted)") == filepath.Join(l.folder, "agent") {
			id, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
			ids = append(ids, id)
		}
	}
	return ids
}

// until waits for something that no descriptor tells of.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain waited for", what)
		}
	}
}

// ended tells whether a process runs no more. Whose parent was killed stays a zombie in a container where process 1 reaps nobody.
func ended(id int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if err != nil {
		return true
	}
	state := raw[bytes.LastIndexByte(raw, ')')+1:]
	return bytes.HasPrefix(state, []byte(" Z"))
}

func (l *launched) kill(t *testing.T) {
	t.Helper()
	if err := unix.PidfdSendSignal(l.process, syscall.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
}

func TestTheLeaseIsWrittenDown(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	read := func() lease.Record {
		r, err := lease.LoadRecord(l.folder)
		if err != nil {
			t.Error(err)
		}
		return r
	}
	if left, now := read().Left(); !now || left > time.Minute || left < 50*time.Second {
		t.Error(left, now)
	}
	l.call(t, "RenewLease", "<Seconds>600</Seconds>")
	until(t, "the renewal", func() bool { left, _ := read().Left(); return left > 590*time.Second })
	text := l.call(t, "Execute", "<CommandLine>read x</CommandLine><KeepInputOpen>true</KeepInputOpen>")
	until(t, "the process", func() bool { return read().Unfinished == 1 })
	_, rest, _ := strings.Cut(text, "<t:Handle>")
	handle, _, _ := strings.Cut(rest, "<")
	l.call(t, "WriteInput", "<Handle>"+handle+"</Handle><Close>true</Close>")
	until(t, "its end", func() bool { return read().Unfinished == 0 })
	l.call(t, "Shutdown", "")
	l.gone(t)
}

func TestTheGuardIsGoneWithTheAgent(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	if ids := l.processes(); len(ids) != 2 {
		t.Error("not the agent and its guard:", ids)
	}
	l.call(t, "Shutdown", "")
	l.gone(t)
	if ids := l.processes(); len(ids) != 0 {
		t.Error("left:", ids)
	}
}

func TestTheGuardOfAKilledAgent(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	l.call(t, "Execute", "<CommandLine>echo $$ &gt; "+l.folder+"/id; sleep 60</CommandLine><SafeToKill>true</SafeToKill>")
	var id int
	until(t, "the process", func() bool {
		raw, _ := os.ReadFile(filepath.Join(l.folder, "id"))
		id, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		return id > 0
	})
	l.kill(t)
	until(t, "the folder's end", func() bool { _, err := os.Lstat(l.folder); return os.IsNotExist(err) })
	until(t, "the guard's end", func() bool { return len(l.processes()) == 0 })
	until(t, "the end of what is safe to kill", func() bool { return ended(id) })
}

func TestTheGuardLetsAnInstallationFinish(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	file := filepath.Join(t.TempDir(), "go-on")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	// What it does last needs the folder.
	l.call(t, "Execute", "<CommandLine>cd "+l.folder+" &amp;&amp; read x &lt; "+file+" &amp;&amp; pwd &gt; "+file+".result</CommandLine><Label>flash</Label>")
	until(t, "the guard to be told", func() bool { r, _ := lease.LoadRecord(l.folder); return r.Unfinished == 1 })
	l.kill(t)
	l.awaitEnd(t)
	if ids := l.processes(); len(ids) != 1 {
		t.Error("not the guard alone:", ids)
	}
	if err := os.WriteFile(file, []byte("\n"), 0); err != nil { // blocks until it reads
		t.Error(err)
	}
	until(t, "the folder's end", func() bool { _, err := os.Lstat(l.folder); return os.IsNotExist(err) })
	until(t, "the guard's end", func() bool { return len(l.processes()) == 0 })
	if raw, _ := os.ReadFile(file + ".result"); string(raw) != l.folder+"\n" {
		t.Errorf("the installation got as far as %q", raw)
	}
}

// A broker that comes back at once finds the folder gone, or takes it away itself; what it puts there then is not the guard's.
func TestTheGuardLeavesAnotherAgentAlone(t *testing.T) {
	l := launch(t, func(*config.Config) {})
	file := filepath.Join(t.TempDir(), "go-on")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	l.call(t, "Execute", "<CommandLine>read x &lt; "+file+"</CommandLine>")
	until(t, "the guard to be told", func() bool { r, _ := lease.LoadRecord(l.folder); return r.Unfinished == 1 })
	l.kill(t)
	l.awaitEnd(t)
	if err := os.Rename(l.folder, l.folder+"-old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("\n"), 0); err != nil {
		t.Error(err)
	}
	until(t, "the guard's end", func() bool { return len(l.processes()) == 0 })
	if _, err := os.Lstat(l.folder); err != nil {
		t.Error("the guard removed another agent's folder", err)
	}
}
