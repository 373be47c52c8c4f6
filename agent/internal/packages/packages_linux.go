// This file asks dpkg and rpm by their own tools, in a form that no locale changes.

package packages

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Managers are the databases that the target has.
func Managers() []string {
	var found []string
	if _, err := os.Stat("/var/lib/dpkg/status"); err == nil && tool("dpkg-query") != "" {
		found = append(found, Dpkg)
	}
	if tool("rpm") != "" {
		found = append(found, RPM)
	}
	return found
}

func tool(name string) string {
	for _, folder := range filepath.SplitList(toolPath) {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

const (
	dpkgFormat = `${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n`
	rpmFormat  = `%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%|ARCH?{%{ARCH}}:{}|\t%|VENDOR?{%{VENDOR}}:{}|\n`
)

func query(manager, name string) ([]Package, error) {
	if strings.HasPrefix(name, "-") || strings.ContainsAny(name, "*?[\\\n\x00") {
		return nil, nil // no package is called so, and the tools would take it for an option or a pattern
	}
	var arguments []string
	switch manager {
	case Dpkg:
		arguments = []string{tool("dpkg-query"), "-W", "-f", dpkgFormat}
	case RPM:
		arguments = []string{tool("rpm"), "-q", "--qf", rpmFormat}
		if name == "" {
			arguments = append(arguments, "-a")
		}
	}
	if name != "" {
		arguments = append(arguments, name)
	}
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Env = []string{"PATH=" + toolPath, "LC_ALL=C", "HOME=/root"}
	var complaint bytes.Buffer
	command.Stderr = &complaint
	text, err := command.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 && name != "" {
		err = nil // both say so where the one asked for is not there
	}
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
		return nil, errors.New(err.Error() + ": " + first)
	}
	if manager == Dpkg {
		return parseDpkg(string(text), name), nil
	}
	return parseRPM(string(text), name), nil
}

// parseDpkg reads lines of dpkgFormat; only what is installed counts, not what left its configuration behind.
func parseDpkg(text, name string) (all []Package) {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(fields) != 4 || fields[3] != "installed" || name != "" && fields[0] != name {
			continue
		}
		all = append(all, Package{Manager: Dpkg, Name: fields[0], Version: fields[1], Architecture: fields[2]})
	}
	return all
}

// parseRPM reads lines of rpmFormat. rpm -q NAME also takes NAME-VERSION: only the exact name counts.
func parseRPM(text, name string) (all []Package) {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(fields) != 4 || name != "" && fields[0] != name {
			continue
		}
		all = append(all, Package{Manager: RPM, Name: fields[0], Version: fields[1], Architecture: fields[2], Publisher: fields[3]})
	}
	return all
}
