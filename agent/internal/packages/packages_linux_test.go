package packages

import (
	"os/exec"
	"slices"
	"testing"
)

// Lines as dpkg-query 1.21 and rpm 4.18 print them for the formats here.
const (
	dpkgLines = "adduser\t3.134\tall\tinstalled\nlibc6\t2.36-9+deb12u10\tamd64\tinstalled\nlibc6\t2.36-9+deb12u10\ti386\tinstalled\n" +
		"vim-common\t2:9.0.1378-2\tall\tinstalled\nremoved\t1.0\tamd64\tconfig-files\nhalf\t1\tamd64\thalf-configured\nbroken line\n"
	rpmLines = "hello\t1.0-1\tx86_64\t\nopenssl\t1:3.0.7-27.el9\tx86_64\tRed Hat, Inc.\ngpg-pubkey\tfd431d51-4ae0493b\t\t\n"
)

func TestParseDpkg(t *testing.T) {
	all := parseDpkg(dpkgLines, "")
	if len(all) != 4 || all[3] != (Package{Manager: Dpkg, Name: "vim-common", Version: "2:9.0.1378-2", Architecture: "all"}) {
		t.Errorf("%+v", all)
	}
	if both := parseDpkg(dpkgLines, "libc6"); len(both) != 2 || both[1].Architecture != "i386" {
		t.Errorf("%+v", both)
	}
}

func TestParseRPM(t *testing.T) {
	all := parseRPM(rpmLines, "")
	if len(all) != 3 || all[1] != (Package{Manager: RPM, Name: "openssl", Version: "1:3.0.7-27.el9", Architecture: "x86_64", Publisher: "Red Hat, Inc."}) {
		t.Errorf("%+v", all)
	}
	if all[0].Publisher != "" || all[2].Architecture != "" {
		t.Errorf("%+v", all)
	}
	// rpm -q also answers to name-version.
	if none := parseRPM(rpmLines, "hello-1.0"); none != nil {
		t.Errorf("%+v", none)
	}
}

func TestRealDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("needs dpkg-query: this machine is not of Debian's family")
	}
	if !slices.Contains(Managers(), Dpkg) {
		t.Fatal(Managers())
	}
	found, err := Query(Dpkg, "dpkg")
	if err != nil || len(found) != 1 || found[0].Name != "dpkg" || found[0].Version == "" {
		t.Error(found, err)
	}
	for _, name := range []string{"no-such-package", "dpk*", "-l", "dpkg\ndpkg"} {
		if found, err := Query(Dpkg, name); len(found) != 0 || err != nil {
			t.Errorf("%q: %v, %v", name, found, err)
		}
	}
	if all, err := Query(Dpkg, ""); err != nil || len(all) < 20 {
		t.Error(len(all), err)
	}
}
