// Package process runs programs for the client: their whole tree, their output by offset, their time limit.
// How a tree is made and killed is each system's own; see child.
package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

// grace is how long output may still come after the process itself has ended: a background child that holds the pipes
// must not make its parent seem to run.
const grace = 250 * time.Millisecond

// maximumReleased bounds the handles of processes that were released which are remembered.
const maximumReleased = 4096

// maximumKept bounds the processes that were not released.
const maximumKept = 500

// MaximumArchive bounds what is kept of a module's archive, in characters of base64.
const MaximumArchive = 1 << 20

// besideArchive is about what else is in a module's program, in bytes.
const besideArchive = 16 << 10

// maximumAnswer is the longest line that a terminal takes, in bytes (termios(3), canonical mode).
const maximumAnswer = 4095

// atOnce has nobody wait for room: the input of a process that has not begun is not read by anybody.
var atOnce = func() <-chan struct{} {
	closed := make(chan struct{})
	close(closed)
	return closed
}()

// Signals, as in deploy.wsdl.
const (
	Interrupt = "interrupt"
	Terminate = "terminate"
	Kill      = "kill"
)

// Variable is one environment variable.
type Variable struct{ Name, Value string }

// Request says what to run.
type Request struct {
	Handle        string   // 0-9a-f; "": any
	Label         string   // what it is for
	Arguments     []string // either these
	CommandLine   string   // or this
	Directory     string
	Environment   []Variable
	User          string
	Input         io.Reader // nil: none
	Archive       Archive   // that of a module which is in the input, as far as it is known
	KeepInputOpen bool
	Timeout       time.Duration // 0: none
	SafeToKill    bool
	MayOutlive    bool // the agent does not wait for its end; see KillOutliving
	Warm          bool // the input is a program for an interpreter that may be kept warm
	Terminal      bool // Linux, and a CommandLine: a terminal beside the standard streams, whose output comes with standard error

	terminal *terminal
}

// Archive is that of a module.
type Archive struct {
	Hash string // SHA-256 of the text, in hexadecimal digits
	Text []byte // base64
}

// child is a started process tree.
type child interface {
	// wait returns when the process itself has ended.
	wait() (exitCode int64)
	// signal reaches the process, or all of its tree. After wait has returned it must not harm others.
	signal(name string, tree bool) error
	// kill ends all of the tree.
	kill()
	// forget lets go of what the tree needed, not of processes that go on.
	forget()
	// processID is the process's, not the tree's.
	processID() int
}

// Table has the processes.
type Table struct {
	folder string
	tell   Coming
	warm   warmer

	mu      sync.Mutex
	byID    map[string]*Process
	coming  map[string]chan struct{} // handles of processes that are being started; closed when that is over
	changed chan struct{}            // closed when a process has begun or ended, or was released
	starts  int                      // processes that are being started
	closed  bool
	unread  bool // see SetUnread

	released []string // handles, the oldest first: an order that is sent again must not begin them anew
}

// Coming is told of a process before it can have done anything, or where a system knows no such moment, right after. ProcessID is 0
// where it is not known yet; then Leader will find it.
type Coming func(Status)

// NewTable makes a table whose processes spool into the folder. Nobody need be told: coming may be nil.
func NewTable(folder string, coming Coming) *Table {
	if coming == nil {
		coming = func(Status) {}
	}
	return &Table{folder: folder, tell: coming, byID: make(map[string]*Process), coming: make(map[string]chan struct{}), changed: make(chan struct{})}
}

// Process is one of them.
type Process struct {
	Handle     string
	label      string
	program    string // its name alone
	safeToKill bool
	mayOutlive bool
	child      child
	began      time.Time
	output     [2]*store // standard output and error
	input      *store
	terminal   *terminal      // nil: none
	pipes      sync.WaitGroup // of both outputs, and the terminal
	asked      atomic.Bool    // the terminal's output was the last

	mu       sync.Mutex
	news     chan struct{} // closed at the next output or end
	ended    bool
	exitCode int64
	timedOut bool
	seconds  float64
	timer    *time.Timer
}

// Archive gives the text of a module's archive that has come with Warm, by its SHA-256 in hexadecimal digits; nil: it is not, or no longer, known.
func (t *Table) Archive(hash string) []byte { return t.warm.archive(hash) }

// KeepArchive keeps the text of a module's archive, as if a module had come with it just now.
func (t *Table) KeepArchive(text []byte) { t.warm.remember(text) }

// PrepareArchive keeps the text of the archive of a module that is yet to come, and has what it will import imported where there is an interpreter for that.
func (t *Table) PrepareArchive(text []byte) {
	go t.warm.prepare(t.warm.remember(text))
}

// PrepareInterpreter has an interpreter kept warm for modules that are yet to come with such a request, in whose command line "@interpreter@" stands for
// the first of these programs, names or paths, that is there. Beginning is what a module's program has before the statement that its archive is in. It
// returns once that is there, or cannot be.
func (t *Table) PrepareInterpreter(r *Request, interpreters []string, beginning []byte) {
	t.warm.prepareInterpreter(r, interpreters, beginning)
}

// Foresee is told of what is about to be started while its input is still on its way: a module's is the larger part of its time on a long way.
func (t *Table) Foresee(r Request) {
	if r.Warm {
		go t.warm.foresee(&r)
	}
}

// Start starts a process, or gives the one of the handle that was started before. Its input has been received when it begins.
func (t *Table) Start(ctx context.Context, r *Request) (*Process, error) {
	if r.Handle == "" {
		var id [8]byte
		rand.Read(id[:])
		return t.start(r, hex.EncodeToString(id[:]))
	}
	for {
		t.mu.Lock()
		if p, ok := t.byID[r.Handle]; ok {
			t.mu.Unlock()
			return p, nil
		}
		if slices.Contains(t.released, r.Handle) {
			t.mu.Unlock()
			return nil, catalogue.New("SD-705", "handle", r.Handle)
		}
		first, ok := t.coming[r.Handle]
		if !ok {
			over := make(chan struct{})
			t.coming[r.Handle] = over
			t.mu.Unlock()
			defer func() {
				t.mu.Lock()
				delete(t.coming, r.Handle)
				t.mu.Unlock()
				close(over)
			}()
			return t.start(r, r.Handle)
		}
		t.mu.Unlock()
		select {
		case <-first: // where that one failed, this one tries itself
		case <-ctx.Done():
			return nil, catalogue.New("SD-504", "detail", "the client has gone")
		}
	}
}

func (t *Table) start(r *Request, handle string) (*Process, error) {
	t.mu.Lock()
	full, closed := len(t.byID) >= maximumKept, t.closed
	if !full && !closed {
		t.starts++
		defer func() {
			t.mu.Lock()
			t.starts--
			t.announce()
			t.mu.Unlock()
		}()
	}
	t.mu.Unlock()
	if full {
		return nil, catalogue.New("SD-504", "detail", "it has too many processes that were not released")
	}
	if closed {
		return nil, catalogue.New("SD-503", "detail", "it is ending")
	}
	p := &Process{Handle: handle, label: r.Label, program: programOf(r), safeToKill: r.SafeToKill, mayOutlive: r.MayOutlive, news: make(chan struct{})}
	for i := range p.output {
		p.output[i] = newStore(t.folder, spoolBytes)
	}
	if r.Input != nil || r.KeepInputOpen {
		p.input = newStore(t.folder, math.MaxInt64)
		p.input.need = needBytes
		if r.Input != nil {
			p.input.expect(len(r.Archive.Text) + besideArchive)
			if err := p.input.fill(atOnce, r.Input); err != nil {
				p.forget()
				if err == errNoRoom {
					return nil, catalogue.New("SD-402", "what", "the input of a process", "detail", "there is too little space in "+t.folder)
				}
				return nil, catalogue.New("SD-504", "detail", "its input: "+err.Error())
			}
		}
		if !r.KeepInputOpen {
			p.input.close()
		}
	}
	if err := p.spawn(t, r); err != nil {
		p.forget()
		return nil, err
	}
	return p, nil
}

func (p *Process) spawn(t *Table, r *Request) error {
	var files, ours [3]*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	defer func() { closeAll(files[:]) }() // the child has its own by then
	failed := func(err error) error {
		closeAll(ours[:])
		return err
	}
	var err error
	if p.input == nil {
		files[0], err = os.Open(os.DevNull)
	} else {
		files[0], ours[0], err = os.Pipe()
	}
	if err != nil {
		return failed(err)
	}
	for i := 1; i < 3; i++ {
		if ours[i], files[i], err = os.Pipe(); err != nil {
			return failed(err)
		}
	}
	if r.Terminal {
		if p.terminal, err = openTerminal(); err != nil {
			return failed(catalogue.New("SD-701", "program", p.program, "detail", "its terminal: "+err.Error()))
		}
		r.terminal = p.terminal
	}
	p.began = time.Now()
	coming := func(id int) {
		t.tell(Status{Handle: p.Handle, Label: p.label, Program: p.program, ProcessID: id, SafeToKill: p.safeToKill, MayOutlive: p.mayOutlive})
	}
	if r.Warm && p.input != nil && !r.KeepInputOpen {
		if p.child = t.warm.start(r, p.input, files, coming); p.child != nil {
			p.output[0].append(before(r), nil)
		}
	}
	if p.child == nil {
		t.warm.giveWay("", []byte(r.CommandLine))
		if p.child, err = start(r, t.folder, p.Handle, files, coming); err != nil {
			return failed(err)
		}
	}
	p.pipes.Add(2)
	for i := range p.output {
		go p.collect(i, ours[i+1], false)
	}
	if p.terminal != nil {
		p.pipes.Add(1)
		go p.collect(1, p.terminal.ours, true)
	}
	if told, ok := p.child.(interface{ hasInput() bool }); ok && told.hasInput() {
		ours[0].Close()
	} else if p.input != nil {
		go p.feed(ours[0])
	}
	if r.Timeout > 0 {
		p.timer = time.AfterFunc(r.Timeout, p.timeOut)
	}
	t.mu.Lock()
	t.byID[p.Handle] = p
	p.setUnread(t.unread)
	t.announce()
	t.mu.Unlock()
	go p.await(t)
	return nil
}

// announce tells who waits for the table; its lock is held.
func (t *Table) announce() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// tell wakes who waits for the process; its lock is held.
func (p *Process) tell() {
	close(p.news)
	p.news = make(chan struct{})
}

func (p *Process) collect(i int, from *os.File, terminal bool) {
	defer from.Close()
	buffer := make([]byte, 32<<10)
	keep := true
	for {
		n, err := from.Read(buffer)
		if n > 0 && keep {
			p.asked.Store(terminal)
			// What comes after the end is read and dropped: a background child must not die of a closed pipe while we live.
			keep = p.output[i].append(buffer[:n], nil)
			p.mu.Lock()
			p.tell()
			p.mu.Unlock()
		}
		if err != nil {
			break
		}
	}
	p.pipes.Done()
}

// feed writes the input as the process reads it.
func (p *Process) feed(to *os.File) {
	defer to.Close()
	var offset int64
	buffer := make([]byte, 32<<10)
	for {
		n, err := p.input.ReadAt(buffer, offset)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil { // it has closed its input, or ended
				p.input.close()
				return
			}
			offset += int64(n)
			p.input.received(offset)
			continue
		}
		if err != io.EOF {
			return
		}
		p.input.mu.Lock()
		more, closed := p.input.end() > offset, p.input.closed
		news := p.input.arrived()
		p.input.mu.Unlock()
		if more {
			continue
		}
		if closed {
			return
		}
		<-news
	}
}

func (p *Process) await(t *Table) {
	code := p.child.wait()
	if p.terminal != nil {
		p.terminal.over()
	}
	closed := make(chan struct{})
	go func() {
		p.pipes.Wait()
		close(closed)
	}()
	for waiting := true; waiting; {
		select {
		case <-closed:
			waiting = false
		case <-time.After(grace):
			// Output that waits for a slow reader is not that of a background child: it is still the process's own.
			waiting = p.output[0].full() || p.output[1].full()
		}
	}
	for _, s := range p.output {
		s.close()
	}
	if p.input != nil {
		p.input.close()
	}
	p.mu.Lock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.ended = true
	p.exitCode = code
	p.seconds = time.Since(p.began).Seconds()
	p.tell()
	p.mu.Unlock()
	t.mu.Lock()
	t.announce()
	t.mu.Unlock()
	if another, ok := p.child.(interface{ another() }); ok {
		another.another()
	}
}

func (p *Process) timeOut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.timedOut = true
	p.child.kill()
}

// Find gives the process of a handle.
func (t *Table) Find(handle string) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.byID[handle]; ok {
		return p, nil
	}
	if len(handle) > 64 {
		handle = handle[:64]
	}
	return nil, catalogue.New("SD-705", "handle", handle)
}

// Snapshot is a process at one moment. The output from the offsets to the ends can be read until it is released.
type Snapshot struct {
	Ended    bool
	ExitCode int64
	TimedOut bool
	Seconds  float64
	Ends     [2]int64
}

func (p *Process) snapshot() (s Snapshot, news <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s = Snapshot{Ended: p.ended, ExitCode: p.exitCode, TimedOut: p.timedOut, Seconds: p.seconds}
	if !p.ended {
		s.Seconds = time.Since(p.began).Seconds()
	}
	for i, store := range p.output {
		s.Ends[i], _ = store.state()
	}
	return s, p.news
}

// Await waits for the end, or, with offsets, for output past them; at most so long.
func (p *Process) Await(ctx context.Context, atMost time.Duration, offsets *[2]int64) Snapshot {
	if offsets != nil {
		for i, s := range p.output {
			s.received(offsets[i])
		}
	}
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for {
		now, news := p.snapshot()
		if now.Ended || offsets != nil && (now.Ends[0] > offsets[0] || now.Ends[1] > offsets[1]) {
			return now
		}
		select {
		case <-news:
		case <-timer.C:
			return now
		case <-ctx.Done():
			return now
		}
	}
}

// Output writes standard output (0) or error (1) from one offset to another.
func (p *Process) Output(stream int, to io.Writer, from, end int64) error {
	return p.output[stream].copyTo(to, from, end)
}

// Kept tells whether the output at the offset can still be had.
func (p *Process) Kept(stream int, offset int64) bool {
	s := p.output[stream]
	s.mu.Lock()
	defer s.mu.Unlock()
	return offset >= s.base && offset <= s.end()
}

// Write appends to the standard input. It takes nothing once the process has closed it.
func (p *Process) Write(ctx context.Context, data io.Reader, last bool) (written int64, err error) {
	if p.input == nil {
		return 0, catalogue.New("SD-504", "detail", "the process was not started with KeepInputOpen")
	}
	if data != nil {
		before, closed := p.input.state()
		if closed {
			_, err = io.Copy(io.Discard, data)
		} else {
			err = p.input.fill(ctx.Done(), data)
		}
		after, _ := p.input.state()
		written = after - before
		if _, closed := p.input.state(); err != nil && !closed {
			return written, catalogue.New("SD-504", "detail", "its data: "+err.Error())
		}
	}
	if last {
		p.input.close()
	}
	return written, nil
}

// Answer writes to whatever spoke last: the terminal, or the standard input of who asks by its standard streams.
func (p *Process) Answer(ctx context.Context, data io.Reader) (written int64, err error) {
	if p.terminal == nil || !p.asked.Load() {
		return p.Write(ctx, data, false)
	}
	if data == nil {
		return 0, nil
	}
	text, err := io.ReadAll(io.LimitReader(data, maximumAnswer+1))
	if err != nil {
		return 0, catalogue.New("SD-504", "detail", "its data: "+err.Error())
	}
	if len(text) > maximumAnswer {
		return 0, catalogue.New("SD-504", "detail", "an answer is longer than a terminal's line")
	}
	n, _ := p.terminal.ours.Write(text) // one that has ended takes none, as with its standard input
	return int64(n), nil
}

// Signal signals the process or its tree. One that has ended is left in peace.
func (p *Process) Signal(name string, tree bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	return p.child.signal(name, tree)
}

// Release forgets an ended process.
func (t *Table) Release(p *Process) error {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if !ended {
		return catalogue.New("SD-504", "detail", "the process still runs")
	}
	t.mu.Lock()
	delete(t.byID, p.Handle)
	if len(t.released) == maximumReleased {
		t.released = slices.Delete(t.released, 0, maximumReleased/2)
	}
	t.released = append(t.released, p.Handle)
	t.announce()
	t.mu.Unlock()
	p.forget()
	return nil
}

func (p *Process) forget() {
	for _, s := range p.output {
		s.release()
	}
	if p.input != nil {
		p.input.release()
	}
	if p.child != nil {
		p.child.forget()
	} else if p.terminal != nil {
		p.terminal.close()
	}
}

// SetUnread says whether the client is gone. While it is, no process waits for its output to be read: it would wait for ever, and
// the agent for it. What there is no room for then takes the place of older output.
func (t *Table) SetUnread(unread bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread = unread
	for _, p := range t.byID {
		p.setUnread(unread)
	}
}

func (p *Process) setUnread(unread bool) {
	for _, s := range p.output {
		s.setUnread(unread)
	}
}

// Begin gives the offsets of the first output that is kept: zeros, unless nobody read for long.
func (p *Process) Begin() (offsets [2]int64) {
	for i, s := range p.output {
		s.mu.Lock()
		offsets[i] = s.base
		s.mu.Unlock()
	}
	return offsets
}

// Status is a process for who knows nothing of it yet.
type Status struct {
	Handle     string
	Label      string
	Program    string // its name alone: arguments may hold secrets
	ProcessID  int
	SafeToKill bool
	MayOutlive bool
	Snapshot
}

// Unfinished tells whether the process runs and is to be waited for.
func (s Status) Unfinished() bool { return !s.Ended && !s.SafeToKill && !s.MayOutlive }

// Name is what to call it before people.
func (s Status) Name() string {
	if s.Label != "" {
		return s.Label
	}
	return s.Program
}

// List gives the processes that were not released, the oldest first, and a channel that closes when that may have changed.
func (t *Table) List() (all []Status, changed <-chan struct{}) {
	t.mu.Lock()
	kept := slices.SortedFunc(maps.Values(t.byID), func(a, b *Process) int { return a.began.Compare(b.began) })
	changed = t.changed
	t.mu.Unlock()
	for _, p := range kept {
		s, _ := p.snapshot()
		all = append(all, Status{p.Handle, p.label, p.program, p.child.processID(), p.safeToKill, p.mayOutlive, s})
	}
	return all, changed
}

// awaited tells whether the process runs and is to be waited for.
func (p *Process) awaited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ended && !p.safeToKill && !p.mayOutlive
}

// Unfinished gives the number of running processes that are to be waited for, and a channel that closes when that may have changed.
func (t *Table) Unfinished() (changed <-chan struct{}, running int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.byID {
		if p.awaited() {
			running++
		}
	}
	return t.changed, running
}

// Close lets no process begin any more, unless one that is to be waited for runs, or any is about to.
func (t *Table) Close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.starts > 0 {
		return false
	}
	for _, p := range t.byID {
		if p.awaited() {
			return false
		}
	}
	t.closed = true
	return true
}

// KillOutliving kills what may outlive the agent: who has it end can be asked, and does not want it any more.
func (t *Table) KillOutliving() {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.byID))
	t.mu.Unlock()
	for _, p := range all {
		p.mu.Lock()
		if !p.ended && p.mayOutlive && !p.safeToKill {
			p.child.kill()
		}
		p.mu.Unlock()
	}
}

// End kills what is safe to kill, and lets the others be. No process begins any more.
func (t *Table) End() {
	t.mu.Lock()
	t.closed = true
	all := make([]*Process, 0, len(t.byID))
	for _, p := range t.byID {
		all = append(all, p)
	}
	t.mu.Unlock()
	for _, p := range all {
		p.mu.Lock()
		if !p.ended && p.safeToKill {
			p.child.kill()
		}
		p.mu.Unlock()
	}
	t.warm.end()
	for _, p := range all {
		if p.safeToKill {
			p.Await(context.Background(), 5*time.Second, nil)
		}
		p.forget()
	}
	Outlive()
}

// programOf is the name of the program that a request starts, without what may be secret.
func programOf(r *Request) string {
	if len(r.Arguments) > 0 {
		return filepath.Base(r.Arguments[0])
	}
	return commandProgram(r.CommandLine)
}

// startError tells why a program could not be started.
func startError(program string, err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		err = path.Err
	}
	if system, ok := errors.AsType[*os.SyscallError](err); ok {
		err = system.Err
	}
	return catalogue.New("SD-701", "program", program, "detail", err.Error())
}
