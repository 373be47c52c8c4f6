// This file is the service on Linux, as a systemd unit or as a daemon, and its launch.

package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/agent"
	"sojourn.example/agent/internal/atboot"
	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/guard"
	"sojourn.example/agent/internal/ownership"
)

// readyDescriptor is the daemon's end of the pipe whose closing tells launch that ready.json is there (or that the daemon died).
const readyDescriptor = 3

// daemonFlag tells serve that it is a daemon which launch waits for.
const daemonFlag = "--daemon"

// startPatience is how long launch waits for the service.
const startPatience = 60 * time.Second

// Serve is the agent as a service. It returns when the agent has removed itself.
func Serve(version string, arguments []string) int {
	log.SetFlags(0) // the journal keeps the time
	syscall.Umask(0o022)
	kind, told := KindSystemd, func() { notify("READY=1") }
	if len(arguments) > 0 && arguments[0] == daemonFlag {
		unix.CloseOnExec(readyDescriptor)
		kind, told = KindDaemon, func() { unix.Close(readyDescriptor) }
	}
	folder, executable, err := Folder()
	if err != nil {
		log.Print(err)
		return 1
	}
	fail := func(err error) int {
		report(folder, refused(err))
		log.Print(err)
		return 1
	}
	c, err := config.Load(folder)
	if err != nil {
		return fail(err)
	}
	stop := stopAsked()
	charge := guard.Charge{Run: c.Run, Folder: folder, ServiceKind: kind}
	if kind == KindSystemd && os.Geteuid() == 0 {
		// A power loss, or a kernel's crash: the folder is the one thing of the agent that outlives it.
		if charge.AtBootMade, err = atboot.Write(c.Run, folder); err != nil {
			log.Printf("%s would stay if the target lost its power: %v", folder, err)
		} else {
			charge.AtBoot = true
		}
	}
	watch := guard.Start(charge)
	a, err := agent.Start(agent.Settings{Config: c, Folder: folder, ServiceKind: kind, Version: version, Guard: watch})
	if err != nil {
		if charge.AtBoot {
			_ = atboot.Remove(c.Run, charge.AtBootMade)
		}
		watch.StandDown()
		return fail(err)
	}
	// From here on nothing but the folder is on the disk: a reboot leaves no executable behind.
	_ = os.Remove(executable)
	_ = os.Remove(filepath.Join(folder, config.ConfigName))
	report(folder, a.Ready())
	told()
	a.Wait(stop, stopPatience)
	notify("STOPPING=1")
	left := a.End()
	if kind == KindSystemd {
		a.Removed("the service "+c.Name(), nil) // it ends with this process
	}
	if left != nil {
		// What removes the folder at boot stays as well: then the rule, which is in the kernel only, is gone too.
		a.Left(left)
		a.Tell()
		watch.StandDown()
		return 0 // a unit that failed would stay, where systemd is too old for --collect
	}
	code := 0
	if charge.AtBoot {
		if err := atboot.Remove(c.Run, charge.AtBootMade); err != nil {
			a.Removed("the file "+atboot.Path(c.Run), err)
			code = 1
		}
	}
	err = os.RemoveAll(folder)
	a.Removed("the folder "+folder, err)
	if err != nil {
		code = 1
	}
	a.Tell()
	watch.StandDown()
	return code
}

// stopAsked is closed when the service manager, or anybody with kill(1), wants the agent to end.
func stopAsked() <-chan struct{} {
	signals, stop := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		<-signals
		close(stop)
	}()
	return stop
}

// notify tells systemd (sd_notify(3)); where there is none it does nothing.
func notify(state string) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return
	}
	connection, err := net.Dial("unixgram", address) // a leading @ is the abstract namespace to Go as well
	if err != nil {
		log.Printf("notifying systemd: %v", err)
		return
	}
	defer connection.Close()
	if _, err := connection.Write([]byte(state)); err != nil {
		log.Printf("notifying systemd: %v", err)
	}
}

// Launch reads the config, starts the service and waits until it is ready. It writes ready, or the error, to out.
// On an error the folder is gone.
func Launch(in io.Reader, out io.Writer) int {
	folder, _, err := Folder()
	if err != nil {
		return answer(out, refused(err))
	}
	ready, err := launch(in, folder)
	if err != nil {
		ready = refused(err)
	}
	if ready.Error != nil {
		_ = os.RemoveAll(folder)
	}
	return answer(out, ready)
}

func answer(out io.Writer, ready *config.Ready) int {
	if err := json.NewEncoder(out).Encode(ready); err != nil || ready.Error != nil {
		return 1
	}
	return 0
}

func launch(in io.Reader, folder string) (*config.Ready, error) {
	c, err := config.Read(in)
	if err != nil {
		return nil, err
	}
	if err := ownership.Take(folder); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(folder, config.ConfigName), raw, 0o600); err != nil {
		return nil, catalogue.New("SD-402", "what", "the agent's config", "detail", err.Error())
	}
	readyPath := filepath.Join(folder, config.ReadyName)
	if err := os.Remove(readyPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	executable := filepath.Join(folder, "agent")
	if self, err := os.Executable(); err == nil {
		executable = self
	}
	awaitEarlier(executable)
	started := startService(c, executable, readyPath)
	raw, err = os.ReadFile(readyPath)
	if err != nil { // it died before it could say why
		if started == nil {
			started = errors.New("it ended without a word")
		}
		return nil, catalogue.New("SD-406", "detail", started.Error())
	}
	_ = os.Remove(readyPath)
	var ready config.Ready
	if err := json.Unmarshal(raw, &ready); err != nil {
		return nil, err
	}
	if ready.Error == nil && started != nil {
		return nil, catalogue.New("SD-406", "detail", started.Error())
	}
	return &ready, nil
}

// earlierPatience is how long launch waits for what is still there of an earlier agent in the same place.
const earlierPatience = 10 * time.Second

// awaitEarlier waits for the end of an earlier agent of this run, or of its guard, whose executable in this place was unlinked long
// ago. Its folder was its last; what is left of it is its exit, and its unit's name, which must be free.
func awaitEarlier(executable string) {
	deadline := time.Now().Add(earlierPatience)
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != executable+" (deleted)" {
			continue
		}
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		process, err := unix.PidfdOpen(id, 0)
		if err != nil {
			continue
		}
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, max(0, int(time.Until(deadline).Milliseconds())))
			if err != unix.EINTR {
				break
			}
		}
		unix.Close(process)
	}
}

// startService prefers a unit; where systemd does not take one, and nothing of the agent has spoken yet, a daemon does as well.
func startService(c *config.Config, executable, readyPath string) error {
	var refused error
	if systemdRuns() && os.Geteuid() == 0 {
		if refused = startUnit(c, executable); refused == nil {
			return nil
		}
		if _, err := os.Lstat(readyPath); err == nil {
			return refused
		}
	}
	if err := startDaemon(executable); err != nil {
		return errors.Join(refused, err)
	}
	return nil
}

// systemdRuns is sd_booted(3).
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// startUnit starts the service as a transient unit and returns once it has notified systemd that it is ready.
func startUnit(c *config.Config, executable string) error {
	arguments := []string{
		"--quiet", "--collect", // gone once ended, also when it failed
		"--unit=" + c.Name(),
		"--description=Sojourn deployment agent (run " + c.Run + ")",
		"--service-type=notify",
		"-p", "KillMode=process", // a daemon that a task started outlives the agent
		"-p", "Delegate=yes", // a control group of its own for each process tree, so that a timeout can kill all of one
		"-p", "TimeoutStartSec=" + fmt.Sprint(startPatience.Seconds()),
		"-p", "TimeoutStopSec=60",
		"-p", "OOMScoreAdjust=-500",
		// Through a shell: SELinux has init start a shell in an unconfined domain, where /tmp/... would stay in init_t.
		"/bin/sh", "-c", "exec " + quote(executable) + " serve",
	}
	for deadline := time.Now().Add(earlierPatience); ; {
		command := exec.Command("systemd-run", arguments...)
		command.Env = append(os.Environ(), "LC_ALL=C")
		text, err := command.CombinedOutput()
		if err == nil {
			return nil
		}
		if arguments[1] == "--collect" && bytes.Contains(text, []byte("unrecognized option")) {
			// systemd before 236 has no --collect: there only a unit that failed would stay, until reset-failed.
			arguments = append(arguments[:1], arguments[2:]...)
			continue
		}
		_ = exec.Command("systemctl", "reset-failed", c.Name()+".service").Run()
		if bytes.Contains(text, []byte("already")) && time.Now().Before(deadline) {
			<-time.After(unitPause) // of an agent that was killed a moment ago: systemd lets go of it once nothing is in it
			continue
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("systemd-run: %v: %s", err, first)
	}
}

// unitPause is between the tries for a unit whose name is still taken.
const unitPause = 100 * time.Millisecond

// quote makes a word of a shell command line.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// startDaemon starts the service in a session of its own and returns once it has closed its end of the pipe, ready or dead.
func startDaemon(executable string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	command := exec.Command(executable, "serve", daemonFlag)
	command.Dir = "/" // keeps no file system busy
	command.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	command.ExtraFiles = []*os.File{writer} // becomes readyDescriptor
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = command.Start()
	writer.Close()
	if err != nil {
		return err
	}
	_ = reader.SetReadDeadline(time.Now().Add(startPatience))
	if _, err := reader.Read(make([]byte, 1)); err != nil && err != io.EOF {
		_ = command.Process.Kill()
		return errors.New("it was not ready in time")
	}
	_ = command.Process.Release() // init takes it over
	return nil
}
