// Package guard is a second, small process of the agent's executable. It does nothing while the agent lives. Where the agent is
// killed, or crashes, it takes back what the agent would have: rules, service, folder. Its controller may be dead as well, and
// then nobody else comes.
//
// It holds the end of a pipe whose other end is the agent's alone. The agent tells it what it runs, and at its own end that all
// is done; a pipe that ends without that word is the end of an agent that took nothing back.
package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/process"
	"sojourn.example/agent/internal/systemlog"
)

// Command is the word of the command line that makes the executable be a guard.
const Command = "guard"

// standDownPatience is how long the agent waits for a guard that was told to end.
const standDownPatience = 5 * time.Second

// Charge is what a guard takes back if its agent does not.
type Charge struct {
	Run         string `json:"run"`
	Folder      string `json:"folder"`
	ServiceKind string `json:"service_kind"`
	AtBoot      bool   `json:"at_boot"`      // there is a file that has the folder removed at boot
	AtBootMade  bool   `json:"at_boot_made"` // and its folder was made for it
}

// Running is a process that the agent runs.
type Running struct {
	Handle     string `json:"handle"`
	ProcessID  int    `json:"process_id"`
	Name       string `json:"name"`
	SafeToKill bool   `json:"safe_to_kill"`
	MayOutlive bool   `json:"may_outlive"`
}

// message is one word of the agent's.
type message struct {
	Charge  *Charge   `json:"charge,omitempty"`
	Coming  *Running  `json:"coming,omitempty"` // before it is in the list
	Running []Running `json:"running"`
	Done    bool      `json:"done,omitempty"`
}

// Guard is the agent's end. A nil one is good: the agent goes on without.
type Guard struct {
	started chan struct{} // closed once the following are set
	process *os.Process   // nil: there is none
	pipe    *os.File

	mu   sync.Mutex
	told []Running
}

// Start starts a guard, while the agent starts itself: a process takes a slow target a while. Where none can be had that is logged.
func Start(charge Charge) *Guard {
	g := &Guard{started: make(chan struct{})}
	go func() {
		defer close(g.started)
		if err := g.start(charge); err != nil {
			log.Printf("there is no guard: %v", err)
		}
	}()
	return g
}

func (g *Guard) start(charge Charge) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	// Before it is started: it must have its charge however soon this process is killed.
	if err := json.NewEncoder(writer).Encode(message{Charge: &charge}); err != nil {
		writer.Close()
		return err
	}
	process, err := spawn(reader, charge.Folder)
	if err != nil {
		writer.Close()
		return err
	}
	g.process, g.pipe = process, writer
	return nil
}

// There waits until the guard is there, or will not be.
func (g *Guard) There() bool {
	if g == nil {
		return false
	}
	<-g.started
	return g.process != nil
}

// Come tells the guard of a process that is about to run: should the agent be killed right then, it must not be forgotten.
func (g *Guard) Come(coming Running) {
	if !g.There() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = nil // the next list is news even if it is as the last one: then this process has ended
	_ = json.NewEncoder(g.pipe).Encode(message{Coming: &coming})
}

// Tell tells the guard what runs now.
func (g *Guard) Tell(running []Running) {
	if !g.There() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.told != nil && slices.Equal(running, g.told) {
		return
	}
	g.told = append(make([]Running, 0, len(running)), running...)
	_ = json.NewEncoder(g.pipe).Encode(message{Running: running}) // a guard that is gone cannot be told
}

// StandDown tells the guard that all is done, and waits for its end.
func (g *Guard) StandDown() {
	if !g.There() {
		return
	}
	ended := make(chan struct{})
	go func() {
		_ = json.NewEncoder(g.pipe).Encode(message{Done: true})
		_, _ = g.process.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(standDownPatience):
		_ = g.process.Kill()
		<-ended
	}
	g.pipe.Close()
}

// guarding is the guard's own side.
type guarding struct {
	charge   *Charge
	identity os.FileInfo // of the folder: another agent's may have the same name one day
	running  []*watched
	walls    firewall.Firewall
	log      systemlog.Log
}

// watched is a process that the agent runs, held so that its id is nobody else's.
type watched struct {
	Running
	held   *held // nil: its id was not known
	coming bool  // it has not been in a list yet
}

func (w *watched) release() {
	if w.held != nil {
		w.held.release()
	}
}

// mayRun tells whether one that is not in the list is missing only since the list is older.
func (w *watched) mayRun() bool {
	if w.held == nil {
		return process.MayRun(w.Handle)
	}
	return !w.held.ended()
}

// Run is a guard, until its agent says that all is done, or all is.
func Run(from io.Reader) int {
	log.SetFlags(0)
	settle()
	g := &guarding{walls: firewall.New(), log: systemlog.New()}
	if g.listen(from) {
		return 0
	}
	return g.takeBack()
}

// listen hears the agent out. It tells whether all is done.
func (g *guarding) listen(from io.Reader) (done bool) {
	words := json.NewDecoder(from)
	for {
		var m message
		if err := words.Decode(&m); err != nil {
			return g.charge == nil
		}
		switch {
		case m.Done:
			return true
		case m.Charge != nil:
			g.charge = m.Charge
			g.identity, _ = os.Lstat(m.Charge.Folder)
		case m.Coming != nil:
			g.come(*m.Coming)
		default:
			g.update(m.Running)
		}
	}
}

// come takes a process to what runs.
func (g *guarding) come(r Running) {
	w := &watched{Running: r, coming: true}
	if r.ProcessID != 0 {
		if w.held = hold(r.ProcessID); w.held == nil {
			return
		}
	}
	g.running = append(g.running, w)
}

// update takes over the list of what runs.
func (g *guarding) update(running []Running) {
	var kept []*watched
	for _, w := range g.running {
		listed := slices.ContainsFunc(running, func(r Running) bool { return r.Handle == w.Handle })
		if slices.Contains(running, w.Running) || w.coming && !listed && w.mayRun() {
			w.coming = w.coming && !listed
			kept = append(kept, w)
		} else {
			w.release()
		}
	}
	for _, r := range running {
		if slices.ContainsFunc(kept, func(w *watched) bool { return w.Running == r }) {
			continue
		}
		if h := hold(r.ProcessID); h != nil {
			kept = append(kept, &watched{Running: r, held: h})
		}
	}
	g.running = kept
}

// replaced tells whether the folder is another one by now: then another agent of the run has come, all there is is that one's, and
// it took back itself what was in its way.
func (g *guarding) replaced() bool {
	now, err := os.Lstat(g.charge.Folder)
	return err == nil && (g.identity == nil || !os.SameFile(now, g.identity))
}

// takeBack does what the agent would have done. The folder is the last: while it is there nobody puts another agent of the run in
// its place, so that nothing of that one can be met here.
func (g *guarding) takeBack() int {
	if g.replaced() {
		return 0
	}
	say := func(warning bool, format string, arguments ...any) {
		g.log.Say(warning, "Run "+g.charge.Run+": "+fmt.Sprintf(format, arguments...))
	}
	var gone, left []string
	report := func(what string, there bool, err error) {
		if err != nil {
			left = append(left, what+" ("+err.Error()+")")
		} else if there && !slices.Contains(gone, what) {
			gone = append(gone, what)
		}
	}
	ofItsRun := func(r firewall.Rule) bool { return r.Run() == g.charge.Run && !g.replaced() }
	closed, _ := g.walls.Close(ofItsRun) // no harm where the system is shutting down: an agent that starts again opens its own
	if systemEnds(config.Prefix + g.charge.Run) {
		return 0
	}
	say(true, "the agent ended without removing itself: it was killed, or it crashed. Its guard does it.")
	g.awaitProcesses(say)
	// A tool that the agent had started may have made a rule after its end.
	again, err := firewall.Insist(g.walls, ofItsRun, nil)
	if g.replaced() {
		return 0
	}
	name := config.Prefix + g.charge.Run
	var told *catalogue.Error
	if err != nil {
		told = firewall.Left(name, err)
		err = errors.New(told.Fields["detail"])
	}
	report("the firewall rule "+name, closed || again, err)
	process.EndWarm() // before it: they wait for the end of what they have begun
	process.Outlive()
	removeService(g.charge, report)
	if told != nil {
		leave(g.charge, told, report)
	} else {
		removeRest(g.charge, report)
	}
	switch {
	case len(left) > 0:
		say(true, "the guard could not remove: %s.", strings.Join(left, "; "))
		return 1
	case len(gone) > 0:
		say(false, "the guard removed %s.", strings.Join(gone, ", "))
	}
	return 0
}

// awaitProcesses lets running installations finish, and ends what is safe to kill.
func (g *guarding) awaitProcesses(say func(bool, string, ...any)) {
	g.running = slices.DeleteFunc(g.running, func(w *watched) bool {
		if w.held == nil {
			w.ProcessID = process.Leader(w.Handle)
			w.held = hold(w.ProcessID)
		}
		return w.held == nil
	})
	for _, w := range g.running {
		if w.SafeToKill && !w.held.ended() {
			process.KillTree(w.Handle, w.ProcessID)
			say(false, "%s was killed: it was marked as safe to kill.", w.Name)
		}
	}
	for _, w := range g.running {
		if w.SafeToKill || w.MayOutlive || w.held.ended() {
			continue
		}
		say(true, "%s is still running: the agent's folder stays until it has ended.", w.Name)
		w.held.wait()
		say(false, "%s has ended; its exit code is not known.", w.Name)
	}
}

// leave has the folder tell what is left, where there is one.
func leave(c *Charge, left *catalogue.Error, report func(what string, there bool, err error)) {
	if _, err := os.Lstat(c.Folder); err != nil {
		return
	}
	if err := config.Leave(c.Folder, left, keep...); err != nil {
		log.Printf("emptying %s: %v", c.Folder, err)
	}
	report("the folder "+c.Folder, true, errors.New("it tells of that"))
}

// gone takes an error for none where it says that there is nothing to remove.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
