// This file keeps interpreters warm: modules of Ansible are Python programs, most of whose time goes by until their libraries are imported.
//
// For a command line that runs such a program from its standard input, the very same command line is started once with another
// program, warm.py, on its standard input. It connects to the agent by an abstract socket, shows the token that it was given, and
// from then on forks the processes that further such command lines would have started. It is told what each is to have: descriptors
// 0 to 2, the folder. A process tells its id by the credentials of its first message, which the kernel vouches for, and goes on once it is
// in its own control group. Its parent reports its end.
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
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maximumInterpreters = 4
	maximumProgram      = 16 << 20
	// warmPatience is how long an interpreter may take to begin, or to import what a module does.
	warmPatience = 20 * time.Second
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
	failed       map[string]bool // command lines that gave none
	ended        bool
}

// interpreter is warm.py at work, with the templates that it made.
type interpreter struct {
	mu         sync.Mutex // one order at a time
	tree       *tree
	connection *net.UnixConn
	over       chan struct{} // closed when its process has ended
	used       time.Time
}

// start starts a program by a warm interpreter; nil: it is to be started without.
func (w *warmer) start(r *Request, handle string, input *store, files [3]*os.File, coming func(id int)) child {
	size, _ := input.state()
	if size > maximumProgram {
		return nil
	}
	program := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(readerAt{input}, 0, size), program); err != nil {
		return nil
	}
	archive := archiveIn(program)
	if archive == nil {
		return nil
	}
	s, err := settle(r)
	if err != nil {
		return nil
	}
	key := s.key()
	for range 2 {
		i := w.interpreter(key, s)
		if i == nil {
			return nil
		}
		t, stale := i.run(archive, s.directory, handle, files, coming)
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

// readerAt reads a store to the end: io.EOF is only where it ends.
type readerAt struct{ *store }

// archiveIn gives the zip, in base64, of a module's wrapper; nil where it is not laid out as known.
func archiveIn(program []byte) []byte {
	if !bytes.Contains(program, wrapperMark) {
		return nil
	}
	before, rest, found := bytes.Cut(program, archiveMark)
	if !found || bytes.Contains(rest, archiveMark) || !namesArchive(before) {
		return nil
	}
	length := bytes.IndexByte(rest, '\'')
	if length < 0 || !isBase64(rest[:length]) {
		return nil
	}
	start := len(before) + 1
	return program[start : start+len(archiveMark)-1+length]
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

// interpreter gives the one of a key, which it starts where there is none; nil: none can be had.
func (w *warmer) interpreter(key string, s *setting) *interpreter {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended || w.failed[key] {
		return nil
	}
	i := w.interpreters[key]
	if i == nil {
		if len(w.interpreters) >= maximumInterpreters {
			w.dropOldest()
		}
		var err error
		if i, err = newInterpreter(s); err != nil {
			if w.failed == nil {
				w.failed = make(map[string]bool)
			}
			w.failed[key] = true
			return nil
		}
		if w.interpreters == nil {
			w.interpreters = make(map[string]*interpreter)
		}
		w.interpreters[key] = i
	}
	i.used = time.Now()
	return i
}

func (w *warmer) dropOldest() {
	var oldest string
	for key, i := range w.interpreters {
		if oldest == "" || i.used.Before(w.interpreters[oldest].used) {
			oldest = key
		}
	}
	go w.interpreters[oldest].end()
	delete(w.interpreters, oldest)
}

// drop ends an interpreter, unless that has been done.
func (w *warmer) drop(key string, i *interpreter) {
	w.mu.Lock()
	if w.interpreters[key] == i {
		delete(w.interpreters, key)
	}
	w.mu.Unlock()
	go i.end()
}

// end ends all, and no other begins.
func (w *warmer) end() {
	w.mu.Lock()
	w.ended = true
	all := w.interpreters
	w.interpreters = nil
	w.mu.Unlock()
	var ending sync.WaitGroup
	for _, i := range all {
		ending.Go(i.end)
	}
	ending.Wait()
}

func newInterpreter(s *setting) (*interpreter, error) {
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
	go func() {
		t.wait()
		close(i.over)
		listener.Close()
	}()
	_ = listener.SetDeadline(time.Now().Add(warmPatience))
	for {
		connection, err := listener.AcceptUnix()
		if err != nil {
			i.end()
			return nil, err
		}
		_ = connection.SetDeadline(time.Now().Add(time.Second))
		shown := make([]byte, 64)
		if n, _ := connection.Read(shown); string(shown[:n]) == token {
			_ = connection.SetDeadline(time.Time{})
			i.connection = connection
			return i, nil
		}
		connection.Close()
	}
}

// end ends an interpreter and its templates, not the processes that they have begun.
func (i *interpreter) end() {
	if i.connection != nil {
		i.connection.Close() // the end of it is theirs
	}
	if i.tree.group != nil {
		i.tree.group.kill()
	} else if i.connection == nil {
		i.tree.kill()
	}
	<-i.over
	i.tree.forget()
}

// order is what an interpreter is told.
type order struct {
	Order   string  `json:"order"`
	Archive string  `json:"archive"`
	Folder  *string `json:"folder,omitempty"`
}

func (i *interpreter) tell(o order, files ...*os.File) error {
	var descriptors []int
	for _, f := range files {
		descriptors = append(descriptors, int(f.Fd()))
	}
	message, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, _, err = i.connection.WriteMsgUnix(message, unix.UnixRights(descriptors...), nil)
	return err
}

// run has a process begun; nil: it was not. Stale: another interpreter may be able to, this one began before something that it goes by changed.
func (i *interpreter) run(archive []byte, directory, handle string, files [3]*os.File, coming func(id int)) (t *warmed, stale bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	hash := sha256.Sum256(archive)
	o := order{"run", hex.EncodeToString(hash[:]), &directory}
	for range 2 {
		word, t, err := i.ask(o, handle, files, coming)
		switch {
		case err != nil:
			return nil, false
		case t != nil:
			return t, false
		case word == 's':
			return nil, true
		}
		if i.teach(o.Archive, archive) != nil {
			return nil, false
		}
	}
	return nil, false
}

// teach gives the interpreter an archive that it does not know.
func (i *interpreter) teach(hash string, archive []byte) error {
	descriptor, err := unix.MemfdCreate("archive", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(descriptor), "archive")
	defer file.Close()
	if _, err := file.Write(archive); err != nil {
		return err
	}
	return i.tell(order{Order: "learn", Archive: hash}, file)
}

// ask has a process begun, or gives the word for why it was not.
func (i *interpreter) ask(o order, handle string, files [3]*os.File, coming func(id int)) (word byte, t *warmed, err error) {
	report, theirs, err := reportPair()
	if err != nil {
		return 0, nil, err
	}
	err = i.tell(o, files[0], files[1], files[2], theirs)
	theirs.Close()
	defer func() {
		if t == nil {
			report.Close()
		}
	}()
	if err != nil {
		return 0, nil, err
	}
	_ = report.SetDeadline(time.Now().Add(warmPatience))
	var said [8]byte
	credentials := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, m, _, _, err := report.ReadMsgUnix(said[:], credentials)
	if err != nil || n == 0 {
		return 0, nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	if said[0] != 'b' {
		return said[0], nil, nil
	}
	id, err := sender(credentials[:m])
	if err != nil {
		return 0, nil, err
	}
	process, err := os.FindProcess(id)
	if err != nil {
		return 0, nil, err
	}
	w := &warmed{tree: tree{process: process, group: newGroup(groupPrefix + handle)}, report: report}
	if w.group != nil && w.group.add(id) != nil {
		w.forget()
		return 0, nil, errors.New("it could not be moved")
	}
	if w.group != nil { // whoever outlives the agent hears of the process before it can have done anything
		coming(0)
	} else {
		coming(id)
	}
	if _, err := report.Write([]byte("g")); err != nil {
		w.forget()
		return 0, nil, err
	}
	_ = report.SetDeadline(time.Time{})
	return 0, w, nil
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

// sender is the process that a message is from.
func sender(ancillary []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(ancillary)
	if err != nil {
		return 0, err
	}
	for n := range messages {
		if credentials, err := unix.ParseUnixCredentials(&messages[n]); err == nil && credentials.Pid > 0 {
			return int(credentials.Pid), nil
		}
	}
	return 0, errors.New("nobody is known to have sent this")
}

// warmed is a process that a template has forked.
type warmed struct {
	tree
	report *net.UnixConn
}

func (w *warmed) wait() int64 {
	defer w.report.Close()
	var said [8]byte
	if n, err := w.report.Read(said[:]); err != nil || n != 5 || said[0] != 'e' {
		return lost
	}
	return exitCode(syscall.WaitStatus(binary.NativeEndian.Uint32(said[1:])))
}
