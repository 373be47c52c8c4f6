// Package agent is the agent's life: begin (port, key pair, firewall), serve while the lease lasts, and take everything back.
package agent

import (
	"errors"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/deploy"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/guard"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/identity"
	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/process"
	"sojourn.example/agent/internal/systemlog"
	"sojourn.example/agent/internal/tunnel"
)

// answerPatience is how long the end waits for answers that are on their way to the client.
const answerPatience = 5 * time.Second

// Agent is a serving agent.
type Agent struct {
	config     *config.Config
	folder     string
	deployment *deploy.Deployment
	server     *deploy.Server
	lease      *lease.Lease
	firewall   *firewall.Keeper
	guard      *guard.Guard
	witness    *witness
	ready      config.Ready

	recorded lease.Record // what others know of the lease; the zero one: nothing
	unsaved  bool         // that the record could not be written has been logged
	ending   chan struct{}
	attended sync.WaitGroup
	hurry    <-chan struct{} // closed when the patience of a service manager that wants the agent to end is over
}

// Settings say what the agent is started with.
type Settings struct {
	Config      *config.Config
	Folder      string
	ServiceKind string
	Version     string
	Guard       *guard.Guard // nil: none
	Restarted   bool         // by the target's boot, not by the way in
}

// Start listens, opens the firewall and serves. On an error it has taken back what it did.
func Start(s Settings) (*Agent, error) {
	c := s.Config
	if err := os.MkdirAll(s.Folder, 0o700); err != nil {
		return nil, catalogue.New("SD-406", "detail", err.Error())
	}
	facts := host.Learn()
	id, err := identity.New(c.Name())
	if err != nil {
		return nil, err
	}
	listener, err := listen(c)
	if err != nil {
		return nil, err
	}
	walls := firewall.Keep(firewall.New())
	a := &Agent{config: c, folder: s.Folder, firewall: walls, guard: s.Guard, lease: lease.New(c.Lease()), ending: make(chan struct{})}
	closeRules := func() { _, _ = walls.Close(a.ofThisRun) }
	// A rule of this run can be there before its agent is: on Windows the service starts again after a reboot.
	if _, err := walls.Close(a.ofThisRun); err != nil {
		listener.Close()
		return nil, err
	}
	opened := false
	for _, address := range admitted(c) {
		rules, _, err := walls.Open(firewall.Rule{Name: c.Name(), Port: listener.Port, Protocol: firewall.TCP, Family: firewall.FamilyOf(address), Source: address})
		if err != nil {
			closeRules()
			listener.Close()
			return nil, err
		}
		opened = opened || len(rules) > 0
	}
	a.deployment = deploy.New(deploy.Settings{
		Config: c, Folder: s.Folder, Version: s.Version, Facts: facts, ServiceKind: s.ServiceKind,
		Port: listener.Port, Lease: a.lease, Firewall: walls, RuleOpened: opened,
		Coming: func(s process.Status) { a.guard.Come(guarded(s)) },
	})
	a.witness = &witness{run: c.Run, log: systemlog.New(), restarted: s.Restarted, lease: a.lease}
	a.server = a.deployment.Server()
	a.attend()
	walls.Watch()
	a.guard.There() // before the executable is unlinked, and before anybody relies on the agent
	go func() {
		if err := a.server.Serve(listener.Listener, id.Server(c.Fingerprint())); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Printf("serving ended: %v", err)
		}
	}()
	a.ready = config.Ready{
		Run: c.Run, ProcessID: os.Getpid(), Port: listener.Port, Tunnel: listener.Place, Certificate: id.PEM(),
		FirewallKind: walls.Kind(), BootID: facts.BootID,
	}
	return a, nil
}

func (a *Agent) ofThisRun(r firewall.Rule) bool { return r.Run() == a.config.Run }

// Ready is what the way in is to be told.
func (a *Agent) Ready() *config.Ready { return &a.ready }

// admitted are the addresses that the agent's port is opened for; a tunnelled agent has no port to open.
func admitted(c *config.Config) []string {
	if c.Transport == config.Tunnel {
		return nil
	}
	return c.ControllerAddresses
}

// listen takes the first free port of the range, on every address of both families; tunnelled, what only the way in leads to.
func listen(c *config.Config) (*tunnel.Entrance, error) {
	if c.Transport == config.Tunnel {
		return tunnel.Listen(c)
	}
	for port := c.Ports.First; port <= c.Ports.Last; port++ {
		// "tcp" with an empty host is [::] dual-stack, or 0.0.0.0 where the target has no IPv6.
		if listener, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			return &tunnel.Entrance{Listener: listener, Port: port}, nil
		}
	}
	return nil, catalogue.New("SD-601", "ports", c.Ports.String())
}

// Wait serves until a Shutdown, the end of the lease, or a stop by the service manager; then no process that must not
// be interrupted is running any more, unless the service manager's patience is over first.
func (a *Agent) Wait(stop <-chan struct{}, patience time.Duration) {
	a.hurry = after(stop, patience)
	for {
		select {
		case <-a.deployment.ShutdownAsked():
			a.deployment.KillOutliving()
			a.awaitProcesses(nil, stop)
			return
		case <-a.lease.Over():
			if a.lease.Alive() {
				continue
			}
			all, _ := a.deployment.Processes()
			a.witness.leaseEnded(all)
			// Whoever comes back for the result of a long installation may renew the lease while it runs.
			if a.awaitProcesses(a.lease.Alive, stop) {
				return
			}
			a.witness.revived()
		case <-stop:
			all, _ := a.deployment.Processes()
			a.witness.stopped(all)
			a.awaitProcesses(nil, a.hurry)
			return
		}
	}
}

// after is closed so long after the other.
func after(stop <-chan struct{}, d time.Duration) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		<-stop
		<-time.After(d)
		close(over)
	}()
	return over
}

// awaitProcesses waits for the processes that are neither safe to kill nor may outlive the agent. It gives up where revived says so once something changed.
func (a *Agent) awaitProcesses(revived func() bool, stop <-chan struct{}) (done bool) {
	a.deployment.SetUnread(true)
	defer a.deployment.SetUnread(false)
	for {
		all, changed := a.deployment.Processes()
		a.witness.look(all)
		if revived != nil && revived() {
			return false
		}
		if unfinished(all) == 0 && a.deployment.Close() {
			return true
		}
		select {
		case <-changed:
		case <-stop:
			return true
		}
	}
}

// End closes the port and the rules and ends what is safe to kill. The service and its folder are the caller's, who tells with
// Removed what became of them. Where a rule could not be closed it gives the error that the folder is to keep.
func (a *Agent) End() (left *catalogue.Error) {
	a.server.Close(answerPatience)
	a.firewall.Stop() // before the rules are closed: what looks after them must not open them again
	before, _ := a.deployment.Processes()
	a.deployment.End()
	after, _ := a.deployment.Processes()
	a.witness.killed(before, after)
	close(a.ending)
	a.attended.Wait()
	closed, err := firewall.Insist(a.firewall, a.ofThisRun, a.hurry)
	if err != nil {
		log.Printf("closing the firewall rules: %v", err)
		left = firewall.Left(a.config.Name(), err)
		err = errors.New(left.Fields["detail"])
	}
	a.witness.removed("the firewall rule "+a.config.Name(), closed, err)
	return left
}

// Left has the folder tell what is left; what is named stays in it too. It takes to the record why.
func (a *Agent) Left(left *catalogue.Error, keep ...string) {
	if err := config.Leave(a.folder, left, keep...); err != nil {
		log.Printf("emptying %s: %v", a.folder, err)
	}
	a.witness.removed("the folder "+a.folder, true, errors.New("it tells of that"))
}

// Removed takes to the record that a thing of the agent's is gone, or why not.
func (a *Agent) Removed(what string, err error) {
	if err != nil {
		log.Printf("removing %s: %v", what, err)
	}
	a.witness.removed(what, true, err)
}

// Tell writes the last line, where there is anything to tell.
func (a *Agent) Tell() { a.witness.last() }

func unfinished(all []process.Status) (number int) {
	for _, s := range all {
		if s.Unfinished() {
			number++
		}
	}
	return number
}

// attend keeps up to date what others know of the agent: its lease's record, for agents of other runs, and what runs, for the guard.
func (a *Agent) attend() {
	all, changed := a.deployment.Processes()
	a.record(unfinished(all))
	a.attended.Go(func() {
		refresh := time.NewTicker(recordRefresh)
		defer refresh.Stop()
		settled := time.NewTimer(recordRefresh)
		defer settled.Stop()
		for {
			select {
			case <-changed:
				all, changed = a.deployment.Processes()
				a.guard.Tell(running(all))
				settled.Reset(recordPause)
			case <-settled.C:
				a.record(unfinished(all))
			case <-a.lease.Renewals():
				a.record(unfinished(all))
			case <-refresh.C: // the target may have slept, and a record that could not be written may be by now
				a.record(unfinished(all))
			case <-a.ending:
				return
			}
		}
	})
}

func running(all []process.Status) (running []guard.Running) {
	for _, s := range all {
		if !s.Ended {
			running = append(running, guarded(s))
		}
	}
	return running
}

func guarded(s process.Status) guard.Running {
	return guard.Running{Handle: s.Handle, ProcessID: s.ProcessID, Name: s.Name(), SafeToKill: s.SafeToKill, MayOutlive: s.MayOutlive}
}

// recordRefresh is how often the lease's record is compared with the lease.
const recordRefresh = 10 * time.Second

// recordPause is how long a change of the processes waits for another: most commands are over before it is worth writing down.
const recordPause = 100 * time.Millisecond

// recordSlack is how far they may be apart, in seconds.
const recordSlack = 0.5

func (a *Agent) record(unfinished int) {
	now := lease.NewRecord(a.lease.Left(), unfinished)
	if now.BootID == a.recorded.BootID && now.Unfinished == a.recorded.Unfinished && math.Abs(now.Until-a.recorded.Until) < recordSlack {
		return
	}
	if err := now.Save(a.folder); err != nil {
		a.recorded = lease.Record{}
		if !a.unsaved {
			a.unsaved = true
			log.Printf("the lease cannot be written down, so that other runs take this one for alive: %v", err)
		}
		return
	}
	a.recorded = now
}
