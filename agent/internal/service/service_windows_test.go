package service

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows/svc"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
)

// refusing is a service whose folder cannot be kept from others. It has no config either: were it to go on, that would be its error.
func refusing(t *testing.T) *handler {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "sojourn-0123456789ab")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	taken := 0
	t.Cleanup(func() {
		if taken != 1 {
			t.Errorf("it was taken %d times", taken)
		}
	})
	return &handler{folder: folder, own: func(path string) error {
		taken++
		if path != folder {
			t.Errorf("what is taken is %s", path)
		}
		return catalogue.New("SD-406", "detail", "no lists here")
	}}
}

// execute gives what the service ended with; it must not have been running.
func execute(t *testing.T, h *handler) (specific bool, code uint32) {
	t.Helper()
	status := make(chan svc.Status, 8)
	specific, code = h.Execute(nil, make(chan svc.ChangeRequest), status)
	close(status)
	for s := range status {
		if s.State == svc.Running {
			t.Error("it said that it was running")
		}
	}
	return specific, code
}

func TestAnAgentWhoseFolderOthersMayReadDoesNotServe(t *testing.T) {
	h := refusing(t)
	if specific, code := execute(t, h); !specific || code != didNotStart {
		t.Errorf("it ended with %v, %d", specific, code)
	}
	raw, err := os.ReadFile(filepath.Join(h.folder, config.ReadyName))
	if err != nil {
		t.Fatal(err)
	}
	var ready config.Ready
	if err := json.Unmarshal(raw, &ready); err != nil {
		t.Fatal(err)
	}
	if ready.Error == nil || ready.Error.Code != "SD-406" || ready.Error.Fields["detail"] != "no lists here" || ready.Port != 0 {
		t.Errorf("%s", raw)
	}
}

// After a reboot nobody may be there to clean up.
func TestAnAgentWhoseFolderOthersMayReadAfterARebootRemovesItself(t *testing.T) {
	h := refusing(t)
	if err := (&config.Ready{Run: "0123456789ab"}).Save(h.folder); err != nil {
		t.Fatal(err)
	}
	walls := firewall.New()
	for _, name := range []string{"sojourn-0123456789ab", "sojourn-0123456789ac"} {
		if _, _, err := walls.Open(firewall.Rule{Name: name, Port: 62286, Protocol: "tcp", Source: "fd73::1"}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { walls.Close(func(rule firewall.Rule) bool { return rule.Run() == "0123456789ac" }) })
	if specific, code := execute(t, h); specific || code != 0 {
		t.Errorf("it ended with %v, %d", specific, code)
	}
	rules, err := walls.List()
	if err != nil || len(rules) != 1 || rules[0].Run() != "0123456789ac" {
		t.Errorf("of the rules there are %v, %v", rules, err)
	}
	// By who waits for the end of this process.
	if marks, _ := filepath.Glob(filepath.Join(h.folder, "end-*")); len(marks) != 1 {
		t.Errorf("nobody is there to remove the folder: %v", marks)
	}
}
