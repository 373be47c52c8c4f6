// Package files receives, sends, describes, removes and unpacks files of the target. Contents are streamed, never held whole, but for those of small files.
package files

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"sojourn.example/agent/internal/account"
	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/host"
)

// PartSuffix names the partial file beside the one that is being received.
const PartSuffix = ".sojourn-part"

const (
	copyBytes = 256 << 10
	// smallBytes is the size up to which a file may be one of the kernel's (proc(5), sysfs(5)), which is not what it says: none, or a page. So it is read
	// before it is said. Such a file may well have more.
	smallBytes  = 64 << 10
	kernelBytes = 16 << 20
)

var buffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// Store does the file work, relative to the agent's folder.
type Store struct {
	folder string
	// How long a request that writes a partial file waits for the one before it. A transfer whose connection was lost is often taken up
	// again before the agent has noticed the loss itself.
	patience time.Duration

	mu    sync.Mutex
	parts map[string]*part // partial files, by path
}

// part is a partial file: who wrote it, and the checksum's state at its end so that a resumed transfer need not read it again.
type part struct {
	account *account.Account
	free    chan struct{} // closed when the request that writes it is done; nil: none does
	size    int64
	state   []byte
}

// NewStore makes the store of the agent's folder.
func NewStore(folder string) *Store {
	return &Store{folder: folder, patience: 5 * time.Second, parts: make(map[string]*part)}
}

func fault(path string, err error) error {
	if known, ok := errors.AsType[*catalogue.Error](err); ok {
		return known
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	} else if l, ok := errors.AsType[*os.LinkError](err); ok {
		err = l.Err
	}
	if isDiskFull(err) {
		return catalogue.New("SD-402", "what", "'"+path+"'", "detail", err.Error())
	}
	return catalogue.New("SD-706", "path", path, "detail", err.Error())
}

// Resolve gives the absolute path of one that may be relative to the agent's folder.
func (s *Store) Resolve(path string) (string, error) {
	switch {
	case path == "":
		return "", fault(path, errors.New("it is empty"))
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case filepath.IsLocal(path):
		return filepath.Join(s.folder, path), nil
	}
	return "", fault(path, errors.New("it leaves the agent's folder"))
}

// resolveFor does the same where a user is named, whose relative paths are those of a login.
func (s *Store) resolveFor(path string, who *account.Account) (string, error) {
	if home := who.Folder(); home != "" && path != "" && !filepath.IsAbs(path) {
		return filepath.Join(home, path), nil
	}
	return s.Resolve(path)
}

// inside tells whether an absolute path is below the agent's folder.
func (s *Store) inside(path string) bool {
	relative, err := filepath.Rel(s.folder, path)
	return err == nil && filepath.IsLocal(relative) && relative != "."
}

func lookUp(user string) (*account.Account, error) {
	if user == "" {
		return nil, nil
	}
	return account.Lookup(user)
}

// Put is a file to be received.
type Put struct {
	Path      string
	Offset    int64
	TotalSize int64
	Mode      string // octal; "": 0600
	User      string
	Data      io.Reader
	Checksum  func() ([]byte, error) // asked for once Data has been read
}

// Put receives a file. A broken transfer leaves the partial file; a damaged one does not.
func (s *Store) Put(r *Put) (sum [sha256.Size]byte, err error) {
	who, err := lookUp(r.User)
	if err != nil {
		return sum, err
	}
	path, err := s.resolveFor(r.Path, who)
	if err != nil {
		return sum, err
	}
	if r.Offset < 0 || r.TotalSize < 0 || r.Offset > r.TotalSize {
		return sum, catalogue.New("SD-504", "detail", "Offset is not within 0 and TotalSize")
	}
	mode := fs.FileMode(0o600)
	if r.Mode != "" {
		bits, err := strconv.ParseUint(r.Mode, 8, 12)
		if err != nil {
			return sum, catalogue.New("SD-504", "detail", "Mode is not octal permission bits")
		}
		mode = fileMode(uint32(bits))
	}
	partPath := path + PartSuffix
	known, err := s.claim(partPath)
	if err != nil {
		return sum, err
	}
	received := &receiver{path: path, partPath: partPath, who: who}
	keep := false
	defer func() { s.disclaim(partPath, known, received, keep) }()

	if err := received.open(s, r, known); err != nil {
		keep = r.Offset > 0
		return sum, fault(path, err)
	}
	defer received.file.Close()
	if err := received.copy(r); err != nil {
		keep = !received.tooLong // what is more than was announced belongs to no file
		return sum, fault(path, err)
	}
	expected, err := r.Checksum()
	if err != nil {
		keep = true
		return sum, err
	}
	if len(expected) != sha256.Size {
		keep = true
		return sum, catalogue.New("SD-504", "detail", "Checksum is not 32 bytes long")
	}
	received.hash.Sum(sum[:0])
	if string(expected) != string(sum[:]) {
		return sum, catalogue.New("SD-707", "path", path, "actual", hex.EncodeToString(sum[:]), "expected", hex.EncodeToString(expected))
	}
	if err := received.finish(mode); err != nil {
		return sum, fault(path, err)
	}
	return sum, nil
}

// claim makes sure that only one request writes a partial file.
func (s *Store) claim(partPath string) (*part, error) {
	tooLong := time.After(s.patience)
	for {
		known, taken := s.tryClaim(partPath)
		if known != nil {
			return known, nil
		}
		select {
		case <-taken:
		case <-tooLong:
			return nil, fault(partPath, errors.New("another request is writing it"))
		}
	}
}

// tryClaim gives the part, or what is closed once it may be tried again.
func (s *Store) tryClaim(partPath string) (known *part, taken <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known = s.parts[partPath]
	if known == nil {
		known = &part{}
		s.parts[partPath] = known
	}
	if known.free != nil {
		return nil, known.free
	}
	known.free = make(chan struct{})
	return known, nil
}

func (s *Store) disclaim(partPath string, known *part, r *receiver, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		close(known.free)
		known.free = nil
	}()
	if keep {
		known.account = r.who
		if r.hash != nil {
			known.size, known.state = r.size, nil
			if marshaler, ok := r.hash.(encoding.BinaryMarshaler); ok {
				known.state, _ = marshaler.MarshalBinary()
			}
		}
		return
	}
	delete(s.parts, partPath)
	if r.file != nil && !r.done {
		r.file.Close()
		_ = account.Do(r.who, func() error { return os.Remove(partPath) })
	}
}

// receiver is one transfer on its way to the disk.
type receiver struct {
	path, partPath string
	who            *account.Account
	file           *os.File
	hash           hash.Hash
	size           int64
	tooLong, done  bool
}

func (r *receiver) open(s *Store, put *Put, known *part) error {
	folder := filepath.Dir(r.path)
	if s.inside(r.path) && r.who == nil {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	return account.Do(r.who, func() (err error) {
		if info, err := os.Lstat(r.path); err == nil && info.IsDir() {
			return errors.New("it is a folder")
		}
		free, err := host.FreeBytes(folder)
		if err != nil {
			return err
		}
		if put.Offset == 0 {
			if err := os.Remove(r.partPath); err == nil {
				free, _ = host.FreeBytes(folder) // what an earlier try took is there again
			}
		}
		if need := put.TotalSize - put.Offset; need > free {
			return catalogue.New("SD-402", "what", "'"+r.path+"'", "detail",
				strconv.FormatInt(need, 10)+" bytes are needed, "+strconv.FormatInt(free, 10)+" are free")
		}
		r.hash = sha256.New()
		if put.Offset == 0 {
			r.file, err = create(r.partPath)
			return err
		}
		if r.file, err = reopen(r.partPath); err != nil {
			return err
		}
		return r.resume(put.Offset, known)
	})
}

// resume brings file and checksum to the offset.
func (r *receiver) resume(offset int64, known *part) error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < offset {
		return errors.New("the partial file has only " + strconv.FormatInt(info.Size(), 10) + " bytes")
	}
	if err := r.file.Truncate(offset); err != nil {
		return err
	}
	r.size = offset
	if known.state != nil && known.size == offset && info.Size() == offset {
		if err := r.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(known.state); err == nil {
			_, err := r.file.Seek(offset, io.SeekStart)
			return err
		}
		r.hash.Reset()
	}
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(r.hash, r.file)
	return err
}

func (r *receiver) copy(put *Put) error {
	buffer := buffers.Get().(*[copyBytes]byte)
	defer buffers.Put(buffer)
	for {
		n, err := fill(put.Data, buffer[:])
		if int64(n) > put.TotalSize-r.size {
			r.tooLong = true
			return catalogue.New("SD-504", "detail", "Data is longer than TotalSize says")
		}
		if n > 0 {
			written, writeErr := r.file.Write(buffer[:n])
			r.hash.Write(buffer[:written])
			r.size += int64(written)
			if writeErr != nil {
				return writeErr
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return catalogue.New("SD-504", "detail", "Data broke off: "+err.Error())
		}
	}
	if r.size < put.TotalSize {
		return catalogue.New("SD-504", "detail", "Data ends at "+strconv.FormatInt(r.size, 10)+" of "+strconv.FormatInt(put.TotalSize, 10)+" bytes")
	}
	return nil
}

// fill reads until the buffer is full, so that the disk sees few and large writes.
func fill(from io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var more int
		more, err = from.Read(buffer[n:])
		n += more
	}
	return n, err
}

func (r *receiver) finish(mode fs.FileMode) error {
	if err := setMode(r.file, mode); err != nil {
		return err
	}
	if err := r.file.Close(); err != nil { // Windows renames no open file
		return err
	}
	if err := account.Do(r.who, func() error { return os.Rename(r.partPath, r.path) }); err != nil {
		return err
	}
	r.done = true
	return nil
}

// End removes the partial files.
func (s *Store) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, p := range s.parts {
		_ = account.Do(p.account, func() error { return os.Remove(path) })
	}
	clear(s.parts)
}

// Sent is a file, or a stretch of it, that is ready to be sent.
type Sent struct {
	Size   int64 // of the whole file
	Length int64 // of what is sent
	from   io.ReadSeeker
	file   *os.File
	offset int64
	sum    []byte
}

// Get opens a file to be sent. length < 0: to the end.
func (s *Store) Get(path string, offset, length int64, user string) (*Sent, error) {
	who, err := lookUp(user)
	if err != nil {
		return nil, err
	}
	if path, err = s.resolveFor(path, who); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, catalogue.New("SD-504", "detail", "Offset is negative")
	}
	var file *os.File
	if err := account.Do(who, func() (err error) { file, err = openToRead(path); return err }); err != nil {
		return nil, fault(path, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a file")
	}
	if err != nil {
		file.Close()
		return nil, fault(path, err)
	}
	sent := &Sent{Size: info.Size(), from: file, file: file, offset: offset}
	if sent.Size <= smallBytes {
		content, err := io.ReadAll(io.LimitReader(file, kernelBytes+1))
		if err == nil && len(content) > kernelBytes {
			err = errors.New("it says that it is small, and has more than 16 MiB")
		}
		if err != nil {
			file.Close()
			return nil, fault(path, err)
		}
		sent.Size, sent.from = int64(len(content)), bytes.NewReader(content)
	}
	sent.Length = max(0, sent.Size-offset)
	if length >= 0 {
		sent.Length = min(sent.Length, length)
	}
	return sent, nil
}

// Data writes the bytes: as many as Length says, or it is an error.
func (s *Sent) Data(to io.Writer) error {
	defer s.file.Close()
	if _, err := s.from.Seek(s.offset, io.SeekStart); err != nil {
		return err
	}
	sum := sha256.New()
	buffer := buffers.Get().(*[copyBytes]byte)
	defer buffers.Put(buffer)
	for left := s.Length; left > 0; {
		n, err := s.from.Read(buffer[:min(int64(len(buffer)), left)])
		sum.Write(buffer[:n])
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
		if left -= int64(n); left > 0 && err != nil {
			return err // the file has become shorter
		}
	}
	s.sum = sum.Sum(nil)
	return nil
}

// Checksum writes the SHA-256 of the bytes that Data has written.
func (s *Sent) Checksum(to io.Writer) error {
	_, err := to.Write(s.sum)
	return err
}

// Kinds, as in deploy.wsdl.
const (
	Absent    = "absent"
	File      = "file"
	Directory = "directory"
	Link      = "link"
	Other     = "other"
)

// Status is what is at a path.
type Status struct {
	Path     string
	Kind     string
	Size     int64
	Mode     string
	Owner    string
	Modified time.Time
	Checksum []byte
}

// Stat tells what is at a path; links are not followed.
func (s *Store) Stat(path string, checksum bool, user string) (*Status, error) {
	who, err := lookUp(user)
	if err != nil {
		return nil, err
	}
	if path, err = s.resolveFor(path, who); err != nil {
		return nil, err
	}
	var info fs.FileInfo
	err = account.Do(who, func() (err error) { info, err = os.Lstat(path); return err })
	if errors.Is(err, fs.ErrNotExist) || isNotDirectory(err) {
		return &Status{Path: path, Kind: Absent}, nil
	}
	if err != nil {
		return nil, fault(path, err)
	}
	status := &Status{Path: path, Kind: Other, Size: info.Size(), Modified: info.ModTime()}
	status.Mode, status.Owner = modeAndOwner(info)
	switch {
	case info.Mode().IsRegular():
		status.Kind = File
	case info.IsDir():
		status.Kind = Directory
	case info.Mode()&fs.ModeSymlink != 0:
		status.Kind = Link
	}
	if checksum && status.Kind == File {
		sent, err := s.Get(path, 0, -1, user)
		if err != nil {
			return nil, err
		}
		if err := sent.Data(io.Discard); err != nil {
			return nil, fault(path, err)
		}
		status.Checksum = sent.sum
	}
	return status, nil
}

// Remove removes a file or folder. False: nothing was there.
func (s *Store) Remove(path string, recursive bool, user string) (removed bool, err error) {
	who, err := lookUp(user)
	if err != nil {
		return false, err
	}
	if path, err = s.resolveFor(path, who); err != nil {
		return false, err
	}
	if path == filepath.Dir(path) || path == s.folder {
		return false, fault(path, errors.New("it must not be removed"))
	}
	err = account.Do(who, func() error {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || isNotDirectory(err) {
			return nil
		}
		removed = true
		if recursive {
			return os.RemoveAll(path)
		}
		return os.Remove(path)
	})
	if err != nil {
		return false, fault(path, err)
	}
	return removed, nil
}
