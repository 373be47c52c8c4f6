package process

import "testing"

func TestNamesHoldNoSecret(t *testing.T) {
	for _, r := range []*Request{
		{CommandLine: "PASSWORD=hunter2 setup"}, {Arguments: []string{"/bin/sh", "-c", "hunter2"}}, {CommandLine: "true", Environment: []Variable{{"A", "hunter2"}}},
	} {
		if got := programOf(r); got != "sh" {
			t.Errorf("%+v is called %q", r, got)
		}
	}
	table, p := run(t, &Request{Arguments: []string{"sleep", "60"}, SafeToKill: true, Label: "waiting"})
	all, changed := table.List()
	if len(all) != 1 || all[0].Name() != "waiting" || all[0].Program != "sleep" || all[0].ProcessID <= 0 || all[0].Unfinished() {
		t.Errorf("%+v", all)
	}
	if err := p.Signal(Kill, true); err != nil {
		t.Error(err)
	}
	<-changed
	if all, _ := table.List(); !all[0].Ended || all[0].ExitCode != 137 {
		t.Errorf("%+v", all)
	}
}
