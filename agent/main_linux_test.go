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
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/config"
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

// gone waits for the agent's end; then nothing may be left.
func (l *launched) gone(t *testing.T) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.process), Events: unix.POLLIN}}, 20000)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(l.process), Events: unix.POLLIN}}, 20000)
	}
	if n != 1 {
		t.Fatal("the agent does not end", err)
	}
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
	if entries, _ := os.ReadDir(l.folder); len(entries) != 0 {
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
