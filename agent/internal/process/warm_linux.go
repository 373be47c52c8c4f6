// This file keeps interpreters warm: modules of Ansible are Python programs, most of whose time goes by until their libraries are imported.
//
// For a command line that runs such a program from its standard input, the very same command line is started once with another
// program, warm.py, on its standard input. It connects to the agent by an abstract socket, shows the token that it was given, and
// from then on forks the processes that further such command lines would have started. A process tells its id by the credentials of its
// first message, which the kernel vouches for, and is moved to a control group of its own. Then it waits to be told what it is to
// have: descriptors 0 to 2, the folder, the program, which is all but its zip. Its parent reports its end, and mostly it says before
// that with what code it is going to.
//
// To fork and to move takes longer than what most modules do: so one that waits is there already, for each zip that has been run.
//
// Whatever goes otherwise than foreseen: nothing was begun, and the process is started without, as if there were no such thing.

package process

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/account"
)

const (
	maximumInterpreters = 4
	maximumProgram      = 16 << 20
	// maximumSpares bounds the processes of an interpreter that wait; each has some 7 MB of its own, 3 where memory is short (see Pages in warm.py).
	maximumSpares = 4
	// maximumTold bounds the message by which a process is told what to run, in bytes: what it has a buffer for.
	maximumTold = 64 << 10
	// maximumArchives bounds what is kept of modules; see MaximumArchive for each.
	maximumArchives = 32
	// warmPatience is how long an interpreter may take to begin, or to import what a module does.
	warmPatience = 20 * time.Second
	// goPatience is how long an interpreter that has nothing to do may take to go.
	goPatience = 5 * time.Second
	// warmPrefix begins the names of control groups: other than those of executions, they are not to outlive the agent.
	warmPrefix = "warm-"
)

//go:embed warm.py
var warmProgram []byte

// archiveMark begins a zip in base64, in quotes.
var archiveMark = []byte("'UEsDB")

// archiveNames are what modules' wrappers call it, in every ansible-core from 2.17 on.
var archiveNames = [][]byte{[]byte("zip_data"), []byte("ZIPDATA")}

var wrapperMark = []byte("_ANSIBALLZ_WRAPPER = True")

// becomeMark is what ansible-core has a command say once it is another user: another word each time.
var becomeMark = regexp.MustCompile(`BECOME-SUCCESS-[a-z]+`)

// warmer has the interpreters.
type warmer struct {
	mu           sync.Mutex
	interpreters map[string]*interpreter
	retired      map[*interpreter]bool    // begin nothing any more, but are there still
	failed       map[string]bool          // command lines that gave none
	starting     map[string]chan struct{} // closed once there is one, or can be none
	ended        bool
	over         chan struct{}     // closed by the end; nil: nobody has asked for it
	ahead        sync.Mutex        // one archive at a time is prepared: a module that is there must not wait for more
	archives     map[string][]byte // what came in modules, by hash: most of a module, and the same each time
	hashes       []string          // of those, the last used is the last
}

// interpreter is warm.py at work, with the templates that it made.
type interpreter struct {
	mu         sync.Mutex // one order at a time
	tree       *tree
	connection *net.UnixConn
	user       int           // as whom it runs; -1: nobody knows
	over       chan struct{} // closed when its process has ended
	forgetting sync.Once
	used       time.Time
	ends       ends

	waiting sync.Mutex
	spares  map[string]*spare // by hash of the zip
	closed  bool              // there are to be no spares any more
	before  []byte            // the beginning of a program, as in beginningOf; nil: none is known
}

// spare is a process that waits to be told what it is to run.
type spare struct {
	made  chan struct{} // closed when it is there, or is not: child
	child *warmed
	since time.Time
}

// start starts a program by a warm interpreter; nil: it is to be started without.
func (w *warmer) start(r *Request, input *store, files [3]*os.File, coming func(id int)) child {
	size, _ := input.state()
	if size > maximumProgram {
		return nil
	}
	program, err := input.all()
	if err != nil {
		return nil
	}
	before, archive, after := archiveIn(program, r.Archive.Text)
	if archive == nil {
		return nil
	}
	hash := r.Archive.Hash
	if bytes.Equal(archive, r.Archive.Text) {
		w.keep(hash, archive)
	} else {
		hash = w.remember(archive)
	}
	s, err := settle(r)
	if err != nil {
		return nil
	}
	key := s.key()
	w.giveWay(key, before, after)
	for range 2 {
		i := w.interpreter(key, s)
		if i == nil {
			return nil
		}
		t, stale := i.run(hash, parts{before, archive, after}, s.directory, files, coming)
		if t != nil {
			return t
		}
		w.drop(key, i)
		if !stale {
			return nil
		}
	}
	return nil
}

// remember keeps a module's archive, for modules that come without; it gives its hash.
func (w *warmer) remember(archive []byte) string {
	sum := sha256.Sum256(archive)
	hash := hex.EncodeToString(sum[:])
	w.keep(hash, archive)
	return hash
}

// keep is remember where the hash is known.
func (w *warmer) keep(hash string, archive []byte) {
	if len(archive) > MaximumArchive {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.archives == nil {
		w.archives = make(map[string][]byte)
	}
	if w.archives[hash] == nil {
		w.archives[hash] = bytes.Clone(archive)
	}
	w.hashes = append(slices.DeleteFunc(w.hashes, func(other string) bool { return other == hash }), hash)
	for len(w.hashes) > maximumArchives {
		delete(w.archives, w.hashes[0])
		w.hashes = w.hashes[1:]
	}
}

// prepare has the interpreter that was used last import what a module will that is yet to come; without one, it is done when that comes.
func (w *warmer) prepare(hash string) {
	w.ahead.Lock()
	defer w.ahead.Unlock()
	w.mu.Lock()
	archive := w.archives[hash]
	var last *interpreter
	for _, i := range w.interpreters {
		if last == nil || i.used.After(last.used) {
			last = i
		}
	}
	w.mu.Unlock()
	if last != nil && archive != nil {
		last.learn(hash, archive)
	}
}

// prepareInterpreter has one ready for a command line by which modules are going to be run, whose programs have this beginning: the first of those named that
// is there. Where none can be had, there is none.
func (w *warmer) prepareInterpreter(r *Request, interpreters []string, beginning []byte) {
	s, err := settle(r)
	if err != nil {
		return
	}
	path := s.first(interpreters)
	if path == "" {
		return
	}
	for n := range s.arguments {
		s.arguments[n] = strings.ReplaceAll(s.arguments[n], interpreterMark, path)
	}
	key := s.key()
	if i := w.interpreter(key, s); i != nil {
		i.begins(beginning)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.failed, key) // what kept it may be what the play is about to mend: a module finds out for itself
}

// foresee starts the interpreter of a module that is still on its way, where there is none of any kind yet.
func (w *warmer) foresee(r *Request) {
	w.mu.Lock()
	none := len(w.interpreters)+len(w.starting) == 0
	w.mu.Unlock()
	if !none {
		return
	}
	if s, err := settle(r); err == nil {
		w.interpreter(s.key(), s)
	}
}

// interpreterMark stands for the interpreter in a command line of which it is not known yet.
const interpreterMark = "@interpreter@"

// plainPath is one that no shell sees anything in.
var plainPath = regexp.MustCompile(`^/[0-9A-Za-z_./+-]+$`)

// first is where the first of these programs is that there are; "": there is none, or none whose path can be written into a command line.
func (s *setting) first(programs []string) string {
	for _, name := range programs {
		var path string
		err := account.Do(s.who, func() (err error) {
			if path, err = lookPath(name, s.directory, s.environment); err != nil {
				return err
			}
			info, err := os.Stat(path)
			if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
				err = os.ErrPermission
			}
			return err
		})
		if err == nil {
			if plainPath.MatchString(path) {
				return path
			}
			return ""
		}
	}
	return ""
}

func (w *warmer) archive(hash string) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.archives[hash]
}

// beginningMark begins the statement of a wrapper that has a task's arguments in it.
var beginningMark = []byte("\nif __name__ == ")

// beginningOf is what all programs of one ansible-core begin with. In what follows there may be secrets.
func beginningOf(before []byte) []byte {
	at := bytes.LastIndex(before, beginningMark)
	if at < 0 || len(before) > MaximumArchive {
		return []byte{}
	}
	return bytes.Clone(before[:at+len(beginningMark)])
}

// archiveIn gives the zip, in base64, of a module's wrapper, what is before it, but for the quote, and what is after it; nil where it is not laid out as
// known. Known: what has been looked at before, to look at which once more takes longer than all else.
func archiveIn(program, known []byte) (before, archive, after []byte) {
	if !bytes.Contains(program, wrapperMark) {
		return nil, nil, nil
	}
	before, rest, found := bytes.Cut(program, archiveMark)
	if !found || bytes.Contains(rest, archiveMark) || !namesArchive(before) {
		return nil, nil, nil
	}
	length := bytes.IndexByte(rest, '\'')
	if length < 0 {
		return nil, nil, nil
	}
	start := len(before) + 1
	end := start + len(archiveMark) - 1 + length
	archive = program[start:end]
	if !bytes.Equal(archive, known) && !isBase64(archive) {
		return nil, nil, nil
	}
	return before, archive, program[end:]
}

// namesArchive tells whether what is before a zip gives it its name.
func namesArchive(before []byte) bool {
	before, assigned := bytes.CutSuffix(bytes.TrimSuffix(before, []byte(" ")), []byte("="))
	before = bytes.TrimSuffix(before, []byte(" "))
	for _, name := range archiveNames {
		if rest, named := bytes.CutSuffix(before, name); named && assigned {
			last, _ := utf8.DecodeLastRune(rest)
			return last != '_' && !unicode.IsLetter(last) && !unicode.IsDigit(last)
		}
	}
	return false
}

func isBase64(text []byte) bool {
	for _, c := range text {
		if !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '/' <= c && c <= '9' || c == '+' || c == '=') { // '/' comes before '0'
			return false
		}
	}
	return true
}

// key tells settings apart: of one key, processes would find the same interpreter in the same state.
func (s *setting) key() string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]any{s.who, s.directory, s.environment, s.program, becomeMark.ReplaceAllString(strings.Join(s.arguments, "\x00"), "")})
	return hex.EncodeToString(h.Sum(nil))
}

// interpreter gives the one of a key, which it starts where there is none; nil: none can be had. Who wants another one need not wait for that.
func (w *warmer) interpreter(key string, s *setting) *interpreter {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.starting[key] != nil {
		started := w.starting[key]
		w.mu.Unlock()
		<-started
		w.mu.Lock()
	}
	if w.ended || w.failed[key] {
		return nil
	}
	i := w.interpreters[key]
	if i == nil {
		i = w.begin(key, s)
	}
	if i != nil {
		i.used = time.Now()
	}
	return i
}

// begin starts the interpreter of a key. The lock is held, but not meanwhile.
func (w *warmer) begin(key string, s *setting) *interpreter {
	started, over := make(chan struct{}), w.ending()
	if w.starting == nil {
		w.starting = make(map[string]chan struct{})
	}
	w.starting[key] = started
	w.mu.Unlock()
	i, err := newInterpreter(s, over)
	w.mu.Lock()
	defer close(started) // who waits for the end of all waits for the end of this one as well
	delete(w.starting, key)
	switch {
	case w.ended:
		if err == nil {
			i.end()
		}
		return nil
	case err != nil:
		if w.failed == nil {
			w.failed = make(map[string]bool)
		}
		w.failed[key] = true
		return nil
	}
	if len(w.interpreters) >= maximumInterpreters {
		w.dropOldest()
	}
	if w.interpreters == nil {
		w.interpreters = make(map[string]*interpreter)
	}
	w.interpreters[key] = i
	return i
}

// ending gives what the end closes. The lock is held.
func (w *warmer) ending() chan struct{} {
	if w.over == nil {
		w.over = make(chan struct{})
	}
	return w.over
}

func (w *warmer) dropOldest() {
	var oldest string
	for key, i := range w.interpreters {
		if oldest == "" || i.used.Before(w.interpreters[oldest].used) {
			oldest = key
		}
	}
	w.retire(oldest, w.interpreters[oldest])
}

// drop has an interpreter begin nothing any more, unless that has been done.
func (w *warmer) drop(key string, i *interpreter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interpreters[key] == i {
		w.retire(key, i)
	}
}

// retire has an interpreter begin nothing any more. It goes by itself once all that it has begun has ended: until then it is the
// only one who will know how. The lock is held.
func (w *warmer) retire(key string, i *interpreter) {
	delete(w.interpreters, key)
	if w.retired == nil {
		w.retired = make(map[*interpreter]bool)
	}
	w.retired[i] = true
	i.connection.Close() // the end of it is its own
	for _, s := range i.seal() {
		go s.dismiss()
	}
	go func() {
		<-i.over
		if !i.gone() {
			return // a part of it was killed, and another is there still
		}
		w.mu.Lock()
		delete(w.retired, i)
		w.mu.Unlock()
	}()
}

// end ends all, and no other begins.
func (w *warmer) end() {
	w.mu.Lock()
	if !w.ended {
		close(w.ending())
	}
	w.ended = true
	starting := slices.Collect(maps.Values(w.starting))
	all := slices.Collect(maps.Values(w.interpreters))
	all = slices.AppendSeq(all, maps.Keys(w.retired))
	w.interpreters, w.retired = nil, nil
	w.mu.Unlock()
	var ending sync.WaitGroup
	for _, i := range all {
		ending.Go(i.end)
	}
	ending.Wait()
	for _, started := range starting {
		<-started
	}
}

// userMarks are in what may remove a user, or change him, which can be done while nobody is at work as he: a module, or a command.
var userMarks = [][]byte{[]byte("modules.user'"), []byte("modules.user\""), []byte("userdel"), []byte("deluser"), []byte("usermod")}

// giveWay ends the interpreters of other users than the agent's own, where one of the texts that are about to be run may be about a user, and waits for
// that. Not one that is at work, nor that of the key.
func (w *warmer) giveWay(key string, texts ...[]byte) {
	if !slices.ContainsFunc(userMarks, func(mark []byte) bool {
		return slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Contains(text, mark) })
	}) {
		return
	}
	var retired []*interpreter
	w.mu.Lock()
	for other, i := range w.interpreters {
		if other != key && i.user != os.Geteuid() && !i.ends.awaits() {
			w.retire(other, i)
			retired = append(retired, i)
		}
	}
	w.mu.Unlock()
	for _, i := range retired {
		select {
		case <-i.over:
		case <-time.After(goPatience):
		}
	}
}

// newInterpreter starts one, and gives it up where all is over before it has come.
func newInterpreter(s *setting, over <-chan struct{}) (*interpreter, error) {
	var random [3][16]byte
	for n := range random {
		rand.Read(random[n][:])
	}
	name, token := "sojourn-"+hex.EncodeToString(random[0][:]), hex.EncodeToString(random[1][:])
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: "@" + name, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	t, err := s.start(warmPrefix+hex.EncodeToString(random[2][:]), [3]*os.File{reader, null, null}, func(int) {})
	reader.Close()
	if err != nil {
		writer.Close()
		return nil, err
	}
	go func() {
		defer writer.Close()
		fmt.Fprintf(writer, "RENDEZVOUS = '%s', '%s'\n", name, token)
		_, _ = writer.Write(warmProgram)
	}()
	i := &interpreter{tree: t, over: make(chan struct{})}
	i.ends.open(name + "-ends")
	go func() {
		t.wait()
		close(i.over)
	}()
	go func() {
		select {
		case <-i.over:
		case <-over:
		}
		listener.Close()
	}()
	_ = listener.SetDeadline(time.Now().Add(warmPatience))
	if i.connection = meet(listener, token); i.connection == nil {
		i.end()
		return nil, errors.New("it did not come")
	}
	i.user = peerUser(i.connection)
	return i, nil
}

// peerUser is the user at the other end; -1: nobody knows.
func peerUser(connection *net.UnixConn) int {
	user := -1
	if raw, err := connection.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				user = int(peer.Uid)
			}
		})
	}
	return user
}

// meet gives the connection of who shows the token; nil: nobody came. The socket's name is no secret on the target: whoever else
// comes must not keep others waiting.
func meet(listener *net.UnixListener, token string) *net.UnixConn {
	came, over := make(chan *net.UnixConn, 1), make(chan struct{})
	go func() {
		defer close(over)
		for {
			connection, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				_ = connection.SetDeadline(time.Now().Add(time.Second))
				shown := make([]byte, 64)
				if n, _ := connection.Read(shown); string(shown[:n]) != token {
					connection.Close()
					return
				}
				_ = connection.SetDeadline(time.Time{})
				came <- connection // it is shown once
			}()
		}
	}()
	select {
	case connection := <-came:
		return connection
	case <-over:
		return nil
	}
}

// end ends an interpreter and its templates, not the processes that they have begun.
func (i *interpreter) end() {
	spares := i.seal() // one may be in the making, of a template that hangs: it is waited for once that is dead
	switch g := i.tree.group; {
	case i.connection == nil:
		i.tree.kill()
	case g != nil && g.kill():
		i.connection.Close()
	default:
		i.connection.Close()
		i.killSession()
	}
	for _, s := range spares {
		s.dismiss()
	}
	<-i.over
	i.gone()
}

// killSession kills what is in the interpreter's own session: each process that it has begun is in another.
func (i *interpreter) killSession() {
	select {
	case <-i.over: // then the session's number may be another's
		return
	default:
	}
	for _, id := range session(i.tree.process.Pid) {
		_ = unix.Kill(id, unix.SIGKILL)
	}
}

// gone lets go of its control group; false: somebody is in it.
func (i *interpreter) gone() bool {
	i.forgetting.Do(func() {
		i.tree.forget()
		i.ends.close()
	})
	if i.tree.group == nil {
		return true
	}
	_, err := os.Lstat(i.tree.group.path)
	return err != nil
}

// order is what an interpreter is told.
type order struct {
	Order string `json:"order"`
	What  string `json:"what"`
	Ahead bool   `json:"ahead,omitempty"`
}

// beginOrder is what a process that waits is told, on a line before the program.
type beginOrder struct {
	What   string `json:"what"`   // the folder
	Before *int   `json:"before"` // bytes of the program before the zip, which is left out; nil: all of it comes on standard input
	End    string `json:"end"`    // the abstract socket that its end may be said to
}

func (i *interpreter) tell(o order, files ...*os.File) error {
	return tell(i.connection, o, nil, files...)
}

func tell(connection *net.UnixConn, o any, program []byte, files ...*os.File) error {
	var descriptors []int
	for _, f := range files {
		descriptors = append(descriptors, int(f.Fd()))
	}
	message, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if program != nil {
		if message = append(append(message, '\n'), program...); len(message) > maximumTold {
			return errTooLong
		}
	}
	_, _, err = connection.WriteMsgUnix(message, unix.UnixRights(descriptors...), nil)
	return err
}

// ends hears from an interpreter's processes that they are about to end: their parent does not before all that they have in memory has been taken apart.
type ends struct {
	name       string // of an abstract socket; who says what there, the kernel vouches for
	connection *net.UnixConn
	mu         sync.Mutex
	awaited    map[int]*warmed // by process id
}

// open begins to hear. Where that cannot be done, only their parent is heard.
func (e *ends) open(name string) {
	e.awaited = make(map[int]*warmed)
	connection, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@" + name, Net: "unixgram"})
	if err != nil {
		return
	}
	raw, err := connection.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		connection.Close()
		return
	}
	e.name, e.connection = name, connection
	go e.hear()
}

func (e *ends) hear() {
	var said [8]byte
	credentials := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, m, _, _, err := e.connection.ReadMsgUnix(said[:], credentials)
		if err != nil {
			return
		}
		e.mu.Lock()
		w := e.awaited[sender(credentials[:m])]
		e.mu.Unlock()
		if w != nil && n == 4 {
			select {
			case w.said <- int64(binary.NativeEndian.Uint32(said[:])):
			default:
			}
		}
	}
}

func (e *ends) close() {
	if e.connection != nil {
		e.connection.Close()
	}
}

func (e *ends) await(w *warmed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.awaited[w.process.Pid] = w
}

// awaits tells whether any is at work.
func (e *ends) awaits() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.awaited) > 0
}

func (e *ends) forget(w *warmed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.awaited[w.process.Pid] == w {
		delete(e.awaited, w.process.Pid)
	}
}

// errTooLong says that a program does not fit into a message.
var errTooLong = errors.New("it is too long for a message")

// parts are those of a module's program.
type parts struct{ before, archive, after []byte }

// run has a process begun; nil: it was not. Stale: another interpreter may be able to, this one began before something that it goes by changed.
func (i *interpreter) run(name string, program parts, directory string, files [3]*os.File, coming func(id int)) (t *warmed, stale bool) {
	for t == nil {
		ready := i.take(name)
		fresh := ready == nil
		if fresh {
			ready = i.fork(name, program.before, program.archive)
		}
		if ready == nil {
			return nil, false
		}
		switch word := ready.begin(program, directory, files, coming); {
		case word == 'b':
			t = ready
		case word == 's':
			ready.dismiss()
			return nil, true
		default: // somebody has killed it while it waited
			ready.dismiss()
			if fresh {
				return nil, false
			}
		}
	}
	t.next = func() { i.prepare(name) }
	i.begins(program.before)
	return t, false
}

// begins keeps what programs begin with, of one of them.
func (i *interpreter) begins(before []byte) {
	i.waiting.Lock()
	defer i.waiting.Unlock()
	if len(i.before) == 0 {
		i.before = beginningOf(before)
	}
}

// take gives the process that waits to run a zip; nil: there is none.
func (i *interpreter) take(name string) *warmed {
	i.waiting.Lock()
	s := i.spares[name]
	delete(i.spares, name)
	i.waiting.Unlock()
	if s == nil {
		return nil
	}
	<-s.made
	return s.child
}

// prepare has a process wait for a zip that has been run.
func (i *interpreter) prepare(name string) {
	i.waiting.Lock()
	if i.closed || i.spares[name] != nil {
		i.waiting.Unlock()
		return
	}
	if i.spares == nil {
		i.spares = make(map[string]*spare)
	}
	if len(i.spares) >= maximumSpares {
		oldest := ""
		for other, s := range i.spares {
			if oldest == "" || s.since.Before(i.spares[oldest].since) {
				oldest = other
			}
		}
		go i.spares[oldest].dismiss()
		delete(i.spares, oldest)
	}
	s := &spare{made: make(chan struct{}), since: time.Now()}
	i.spares[name] = s
	i.waiting.Unlock()
	s.child = i.fork(name, nil, nil)
	close(s.made)
	if s.child == nil { // it takes nobody's place
		i.waiting.Lock()
		if i.spares[name] == s {
			delete(i.spares, name)
		}
		i.waiting.Unlock()
	}
}

// seal gives all processes that wait, to be dismissed, and there will be no others.
func (i *interpreter) seal() map[string]*spare {
	i.waiting.Lock()
	defer i.waiting.Unlock()
	all := i.spares
	i.spares, i.closed = nil, true
	return all
}

func (s *spare) dismiss() {
	if <-s.made; s.child != nil {
		s.child.dismiss()
	}
}

// fork has a process made that waits; nil: it was not. Archive: to be taught where it is not known; nil: then there is to be none.
func (i *interpreter) fork(name string, before, archive []byte) *warmed {
	w, id := i.ask(order{Order: "run", What: name}, before, archive)
	if w == nil {
		return nil
	}
	process, err := os.FindProcess(id)
	if err != nil {
		w.report.Close()
		return nil
	}
	var random [8]byte
	rand.Read(random[:])
	w.tree = tree{process: process, group: newGroup(groupPrefix + hex.EncodeToString(random[:]))}
	w.ends, w.over, w.said = &i.ends, make(chan struct{}), make(chan int64, 1)
	if w.group != nil && w.group.add(id) != nil {
		w.dismiss()
		return nil
	}
	return w
}

// learn gives the interpreter an archive that nothing has been run of yet, and returns once it has made of it what it can.
func (i *interpreter) learn(hash string, archive []byte) {
	i.waiting.Lock()
	before := i.before
	i.waiting.Unlock()
	if before == nil {
		return
	}
	over, theirs, err := os.Pipe()
	if err != nil {
		return
	}
	defer over.Close()
	i.mu.Lock()
	defer i.mu.Unlock()
	err = i.teach(order{Order: "learn", What: hash, Ahead: true}, theirs, archive, before)
	theirs.Close()
	if err == nil {
		_ = over.SetReadDeadline(time.Now().Add(warmPatience))
		_, _ = over.Read(make([]byte, 1)) // it closes its end
	}
}

// teach gives the interpreter an archive that it does not know, and what is before it in its program. Over, if any, is closed by it once that is done.
func (i *interpreter) teach(o order, over *os.File, texts ...[]byte) error {
	var files []*os.File
	for _, text := range texts {
		descriptor, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(descriptor), "program")
		defer file.Close()
		if _, err := file.Write(text); err != nil {
			return err
		}
		files = append(files, file)
	}
	if over != nil {
		files = append(files, over)
	}
	return i.tell(o, files...)
}

// ask has a process made, and gives it, so far as it is known, and its id; nil: it was not.
func (i *interpreter) ask(o order, before, archive []byte) (*warmed, int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for range 2 {
		report, theirs, err := reportPair()
		if err != nil {
			return nil, 0
		}
		err = i.tell(o, theirs)
		theirs.Close()
		if err != nil {
			report.Close()
			return nil, 0
		}
		word, id := hear(report)
		if (word == 'f' || word == 'w') && id > 0 {
			return &warmed{report: report, whole: word == 'w'}, id
		}
		report.Close()
		if word != 'u' || archive == nil || i.teach(order{Order: "learn", What: o.What}, nil, archive, before) != nil {
			return nil, 0
		}
	}
	return nil, 0
}

// hear gives the word that a process says, and the process; 0: none.
func hear(report *net.UnixConn) (word byte, id int) {
	_ = report.SetReadDeadline(time.Now().Add(warmPatience))
	defer report.SetReadDeadline(time.Time{})
	var said [8]byte
	credentials := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, m, _, _, err := report.ReadMsgUnix(said[:], credentials)
	if err != nil || n == 0 {
		return 0, 0
	}
	return said[0], sender(credentials[:m])
}

// reportPair makes the connection by which one process is begun and reported; ours is told who sends.
func reportPair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "report"), os.NewFile(uintptr(pair[1]), "report")
	defer mine.Close()
	if err := unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	connection, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return connection.(*net.UnixConn), theirs, nil
}

// sender is the process that a message is from; 0: nobody is known.
func sender(ancillary []byte) int {
	messages, err := unix.ParseSocketControlMessage(ancillary)
	if err != nil {
		return 0
	}
	for n := range messages {
		if credentials, err := unix.ParseUnixCredentials(&messages[n]); err == nil {
			return int(credentials.Pid)
		}
	}
	return 0
}

// warmed is a process that a template has forked.
type warmed struct {
	tree
	report *net.UnixConn
	next   func() // has another one wait
	ends   *ends
	whole  bool          // it has no zip, and is to have all of its program
	told   bool          // of its program: nothing comes on its standard input
	said   chan int64    // the exit code with which it is about to end
	ending atomic.Bool   // it has said so
	over   chan struct{} // closed once its end is reported
}

// begin has it run a program. It gives 'b'; 's': something has changed on the target since the interpreter began; 0: it has gone.
func (w *warmed) begin(program parts, directory string, files [3]*os.File, coming func(id int)) byte {
	o := beginOrder{What: directory, End: w.ends.name}
	err := errTooLong
	if !w.whole {
		before := len(program.before) + 1 // the quote is not the zip's
		o.Before, w.told = &before, true
		err = tell(w.report, o, slices.Concat(program.before, []byte{'\''}, program.after), files[:]...)
	}
	if errors.Is(err, errTooLong) || errors.Is(err, unix.EMSGSIZE) {
		o.Before, w.told = nil, false
		err = tell(w.report, o, nil, files[:]...)
	}
	if err != nil {
		return 0
	}
	word, id := hear(w.report)
	switch {
	case word == 's':
		return word
	case word != 'b' || id != w.process.Pid:
		return 0
	}
	w.ends.await(w)
	coming(id) // whoever outlives the agent hears of the process before it can have done anything
	if _, err := w.report.Write([]byte("g")); err != nil {
		return 0
	}
	return 'b'
}

// dismiss ends one that has not begun.
func (w *warmed) dismiss() {
	w.tree.kill()
	_ = w.process.Kill() // it may not have come to its group
	w.report.Close()
	w.awaitEnd()
	w.ends.forget(w)
	w.tree.forget()
}

// another has the next one wait: once this one's result can be had, since to fork and to move it takes from those who fetch that.
func (w *warmed) another() { w.next() }

// hasInput tells whether it has its input already.
func (w *warmed) hasInput() bool { return w.told }

func (w *warmed) wait() int64 {
	reported := make(chan int64, 1)
	go func() {
		defer close(w.over)
		reported <- w.reported()
		w.ends.forget(w)
	}()
	select {
	case code := <-w.said:
		w.ending.Store(true)
		w.ends.forget(w)
		return code
	case code := <-reported:
		return code
	}
}

// reported gives the exit code that its parent reports.
func (w *warmed) reported() int64 {
	defer w.report.Close()
	var said [8]byte
	if n, err := w.report.Read(said[:]); err != nil || n != 5 || said[0] != 'e' {
		w.awaitEnd() // its parent was killed, not it
		select {
		case code := <-w.said:
			return code
		case <-time.After(grace):
			return lost
		}
	}
	return exitCode(syscall.WaitStatus(binary.NativeEndian.Uint32(said[1:])))
}

// forget lets go of the control group, where the process has said that it is about to end once it has: in a moment.
func (w *warmed) forget() {
	if w.ending.Load() {
		select {
		case <-w.over:
		case <-time.After(grace): // it has much in memory
			go func() {
				<-w.over
				w.tree.forget()
			}()
			return
		}
	}
	w.tree.forget()
}

// awaitEnd waits for the end of the process, which is nobody's child that we would know.
func (w *warmed) awaitEnd() {
	err := w.process.WithHandle(func(handle uintptr) {
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, -1); err != unix.EINTR {
				return
			}
		}
	})
	for err != nil && w.process.Signal(syscall.Signal(0)) == nil { // kernels before 5.4: there is nothing to wait on
		time.Sleep(time.Second)
	}
}

// before is what the command line of a warm interpreter would have said before the program began: ansible-core looks for it.
func before(r *Request) []byte {
	mark := becomeMark.FindString(strings.Join(r.Arguments, "\x00") + r.CommandLine)
	if mark == "" {
		return nil
	}
	return []byte(mark + "\n")
}
