package host

import "testing"

func TestReleaseName(t *testing.T) {
	for text, want := range map[string]string{
		"NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n": "Debian GNU/Linux 12 (bookworm)",
		"PRETTY_NAME='A \"B\"'\n":     `A "B"`,
		"PRETTY_NAME=\"A \\\"B\\\"\"": `A "B"`,
		"NAME=x\n":                    "",
	} {
		if got := releaseName(text); got != want {
			t.Errorf("%q gave %q", text, got)
		}
	}
}

func TestLearn(t *testing.T) {
	f := Learn()
	if f.Family != "linux" || f.Name == "" || f.Version == "" || len(f.BootID) != 36 || f.Account == "" || f.HostName == "" {
		t.Errorf("%+v", f)
	}
	if again := Learn(); again != f {
		t.Error("the facts change", again)
	}
	if free, err := FreeBytes("/"); err != nil || free <= 0 || ResidentBytes() <= 0 {
		t.Error(free, err, ResidentBytes())
	}
}
