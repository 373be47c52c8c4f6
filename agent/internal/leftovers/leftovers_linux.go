// This file finds leftovers on Linux: transient units, agents' and guards' processes, folders, and the files that remove those at boot.

package leftovers

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/atboot"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/guard"
	"sojourn.example/agent/internal/host"
)

// agentPatience is how long an agent that was told to end gets, before it is killed.
const agentPatience = 10 * time.Second

func find(add func(string, thing)) error {
	findProcesses(add)
	findUnits(add)
	findFolders(add)
	findFiles(add)
	return nil
}

// findProcesses finds agents and their guards: processes whose executable is, or was, 'agent' in a run's folder. Guards come first:
// one that is left for later would begin to clean up at its agent's end.
func findProcesses(add func(string, thing)) {
	type agent struct {
		run string
		thing
	}
	var agents []agent
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		target = strings.TrimSuffix(target, " (deleted)")
		folder := filepath.Dir(target)
		id, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		run := runOf(filepath.Base(folder))
		if err != nil || run == "" || filepath.Base(target) != "agent" {
			continue
		}
		t := thing{kind: Process, remove: func() error { return endProcess(id) }, folder: folder}
		if isGuard(id) {
			t.name, t.guard = fmt.Sprintf("guard (process %d)", id), true
			add(run, t)
			continue
		}
		t.name, t.agent, t.age = fmt.Sprintf("agent (process %d)", id), true, age(id)
		agents = append(agents, agent{run, t})
	}
	for _, a := range agents {
		add(a.run, a.thing)
	}
}

// isGuard tells what an agent's executable was started as.
func isGuard(id int) bool {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id))
	words := strings.Split(string(raw), "\x00")
	return len(words) > 1 && words[1] == guard.Command
}

// age is how long a process has run.
func age(id int) time.Duration {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	const start, perSecond = 19, 100 // of proc(5)'s fields, counted after the name; USER_HZ
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) <= start {
		return 0
	}
	ticks, _ := strconv.ParseInt(string(fields[start]), 10, 64)
	return host.SinceBoot() - time.Duration(ticks)*time.Second/perSecond
}

// endProcess asks an agent to remove itself, and kills it where it does not.
func endProcess(id int) error {
	process, err := unix.PidfdOpen(id, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil { // a kernel without pidfd (before 5.3): nothing to wait on
		return unix.Kill(id, unix.SIGKILL)
	}
	defer unix.Close(process)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(process, signal, nil, 0); err != nil {
			if errors.Is(err, unix.ESRCH) {
				return nil
			}
			return err
		}
		if ended(process) {
			return nil
		}
	}
	return errors.New("it does not end")
}

// ended waits for a process.
func ended(process int) bool {
	deadline := time.Now().Add(agentPatience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return true
		}
		if err != nil && err != unix.EINTR {
			return false
		}
	}
}

func findUnits(add func(string, thing)) {
	text, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", config.Prefix+"*.service").Output()
	if err != nil {
		return // no systemd here
	}
	lines := bufio.NewScanner(strings.NewReader(string(text)))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		unit := fields[0]
		if run := runOf(strings.TrimSuffix(unit, ".service")); run != "" {
			add(run, thing{kind: Service, name: unit, remove: func() error {
				_ = exec.Command("systemctl", "stop", unit).Run()
				_ = exec.Command("systemctl", "reset-failed", unit).Run()
				state, _ := exec.Command("systemctl", "is-active", unit).Output()
				if strings.TrimSpace(string(state)) == "active" {
					return errors.New("it does not stop")
				}
				return nil
			}})
		}
	}
}

// findFolders looks where a way in puts an agent: the folders for temporary files and the users' homes.
func findFolders(add func(string, thing)) {
	places := []string{"/tmp", "/var/tmp"}
	if passwd, err := os.ReadFile("/etc/passwd"); err == nil {
		for line := range strings.Lines(string(passwd)) {
			if fields := strings.Split(line, ":"); len(fields) == 7 && filepath.IsAbs(fields[5]) && fields[5] != "/" {
				places = append(places, filepath.Clean(fields[5]))
			}
		}
	}
	seen := make(map[string]bool)
	for _, place := range places {
		matches, _ := filepath.Glob(filepath.Join(place, config.Prefix+"*"))
		for _, path := range matches {
			run := runOf(filepath.Base(path))
			info, err := os.Lstat(path)
			if run == "" || seen[path] || err != nil || !info.IsDir() {
				continue
			}
			seen[path] = true
			settling := ""
			// The executable is gone once an agent runs: with one, somebody may be about to start it.
			if exists(path, "agent") && exists(path, config.SessionName) && isNew(info) {
				settling = "it is being set up"
			}
			add(run, thing{kind: Folder, name: path, remove: func() error { return os.RemoveAll(path) }, settling: settling, folder: path})
		}
	}
}

// findFiles finds what agents left for the next boot.
func findFiles(add func(string, thing)) {
	matches, _ := filepath.Glob(filepath.Join(atboot.Folder, config.Prefix+"*"))
	for _, path := range matches {
		if run := atboot.RunOf(path); run != "" && path == atboot.Path(run) {
			add(run, thing{kind: File, name: path, remove: func() error { return atboot.Remove(run, false) }})
		}
	}
}
