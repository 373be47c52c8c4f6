// Package atboot has a Linux target remove the agent's folder at its next boot, should the agent not have come to do it itself:
// by a file that systemd-tmpfiles reads.
package atboot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sojourn.example/agent/internal/config"
)

// Folder is where tmpfiles.d(5) has the administrator's files; tests have their own.
var Folder = "/etc/tmpfiles.d"

const suffix = ".conf"

// Path is the file of a run.
func Path(run string) string { return filepath.Join(Folder, config.Prefix+run+suffix) }

// RunOf gives the run of a file's path, or "".
func RunOf(path string) string {
	name, ok := strings.CutSuffix(filepath.Base(path), suffix)
	if run, is := strings.CutPrefix(name, config.Prefix); ok && is && config.IsRun(run) {
		return run
	}
	return ""
}

// Write has the folder, and the file itself, removed at the next boot ('!': at boot only). Made tells whether the folder of such
// files had to be made.
func Write(run, folder string) (made bool, err error) {
	if err := os.Mkdir(Folder, 0o755); err == nil {
		made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	path := Path(run)
	text := "# Made by a deployment, which removes this file when it ends.\n" +
		"R! " + word(folder) + "\nR! " + word(path) + "\n"
	unfinished := filepath.Join(Folder, "."+filepath.Base(path)+".new") // no .conf: systemd-tmpfiles does not read it
	err = os.WriteFile(unfinished, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	if err != nil {
		_ = os.Remove(unfinished)
		if made {
			_ = os.Remove(Folder)
		}
		return false, err
	}
	return made, nil
}

// Remove takes the file back; made: and the folder, where nobody else has put anything in it.
func Remove(run string, made bool) error {
	err := os.Remove(Path(run))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if made {
		_ = os.Remove(Folder)
	}
	return err
}

// word is a path in the words of tmpfiles.d(5): a pattern of glob(7) with specifiers, within quotes.
func word(path string) string {
	pattern := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "%", "%%").Replace(path)
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(pattern) + `"`
}
