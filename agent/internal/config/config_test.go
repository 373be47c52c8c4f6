package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sojourn.example/agent/internal/catalogue"
	"time"
)

var good = `{"run": "0123456789ab", "client_sha256": "` + strings.Repeat("ab", 32) + `", "controller_addresses": ["fe80::1%eth0", "::ffff:192.0.2.1"],
	"ports": {"first": 62286, "last": 62293}, "lease_seconds": 120, "of a later version": 1}`

func TestRead(t *testing.T) {
	c, err := Read(strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != "sojourn-0123456789ab" || c.Lease() != 2*time.Minute || c.Fingerprint()[31] != 0xab || c.Ports.String() != "62286-62293" {
		t.Error(c)
	}
	if c.ControllerAddresses[0] != "fe80::1" || c.ControllerAddresses[1] != "192.0.2.1" {
		t.Error(c.ControllerAddresses)
	}
	if c.Transport != Direct {
		t.Errorf("without a word it is %q", c.Transport)
	}
	if c, err = Read(strings.NewReader(strings.Replace(good, `"run"`, `"transport": "tunnel", "run"`, 1))); err != nil || c.Transport != Tunnel {
		t.Error(c, err)
	}
}

func TestRefused(t *testing.T) {
	for _, change := range [][2]string{
		{good, ""},
		{good, "{"},
		{"0123456789ab", "0123456789AB"},
		{"0123456789ab", "../../../etc"},
		{strings.Repeat("ab", 32), "ab"},
		{"fe80::1%eth0", "controller.example"},
		{`"first": 62286`, `"first": 0`},
		{`"last": 62293`, `"last": 62285`},
		{`"last": 62293`, `"last": 70000`},
		{`120`, `0`},
		{`"run"`, `"transport": "auto", "run"`},
		{`120`, `1e9`},
		{`120`, strings.Repeat(" ", maximumSize) + `120`},
	} {
		if _, err := Read(strings.NewReader(strings.Replace(good, change[0], change[1], 1))); err == nil {
			t.Errorf("%.40q instead of %.40q was taken", change[1], change[0])
		}
	}
}

func TestSaveIsAtomic(t *testing.T) {
	folder := t.TempDir()
	if err := (&Ready{Run: "0123456789ab", Port: 1}).Save(folder); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(folder)
	raw, _ := os.ReadFile(filepath.Join(folder, ReadyName))
	if len(entries) != 1 || string(raw) != `{"run":"0123456789ab","port":1}` {
		t.Error(entries, string(raw))
	}
}

func TestWhatIsLeftIsToldInAnEmptyFolder(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"agent.exe", "inner/file", ConfigName} {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o700)
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left := catalogue.New("SD-801", "what", "The firewall rule sojourn-0123456789ab", "detail", "nft ended with 1")
	if err := Leave(folder, left, "agent.exe"); err != nil {
		t.Error(err)
	}
	entries, _ := os.ReadDir(folder)
	raw, _ := os.ReadFile(filepath.Join(folder, LeftName))
	want := `{"error":{"code":"SD-801","fields":{"detail":"nft ended with 1","what":"The firewall rule sojourn-0123456789ab"}}}`
	if len(entries) != 2 || entries[0].Name() != "agent.exe" || string(raw) != want {
		t.Error(entries, string(raw))
	}
	if Leave(filepath.Join(folder, "none"), left) == nil {
		t.Error("a folder that somebody removed meanwhile is not made anew")
	}
}
