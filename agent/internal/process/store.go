// This file keeps a stream of bytes by offset: in memory up to a bound, then in a file of the agent's folder that no name leads to.

package process

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"sojourn.example/agent/internal/host"
)

const (
	memoryBytes = 256 << 10 // of each stream; what most commands print fits
	spoolBytes  = 256 << 20 // of each output; more must have been read before more is taken
	spareBytes  = 64 << 20  // left free on the disk
	checkBytes  = 8 << 20   // the free space is looked at each time this much has been written
	needBytes   = 32 << 20  // of an input, in memory, where the disk has no room: most programs that come as one fit
)

// errNoRoom says that bytes were not taken, and that nobody makes room for them.
var errNoRoom = errors.New("there is no room for it")

// errNotKept says that bytes are asked for which have been read long ago and dropped since.
var errNotKept = errors.New("the output at this offset is no longer kept")

// store keeps a stream. Bytes stay until release, so that asking again gives the same bytes; only when the bound is
// reached, and all has been read, it begins anew.
type store struct {
	folder string
	bound  int64 // of the file
	need   int   // of memory, where the file cannot be had

	mu      sync.Mutex
	base    int64 // offset of the first byte kept
	memory  []byte
	file    *os.File
	inFile  int64
	checked int64 // inFile when the free space was last looked at
	read    int64 // everything before this offset has been received by the reader
	closed  bool  // no more will come
	waiting bool  // somebody waits for room
	unread  bool  // nobody reads any more: what there is no room for takes the place of what was kept
	gone    bool
	room    chan struct{} // closed when there may be room again
	news    chan struct{} // closed when bytes or the end have come; nil: nobody waits
}

func newStore(folder string, bound int64) *store {
	return &store{folder: folder, bound: bound, room: make(chan struct{})}
}

// expect makes room in memory for about so many bytes.
func (s *store) expect(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = slices.Grow(s.memory, max(0, min(bytes, memoryBytes)-len(s.memory)))
}

// all gives what is there; it is not to be changed.
func (s *store) all() ([]byte, error) {
	s.mu.Lock()
	if s.closed && s.base == 0 && s.inFile == 0 {
		defer s.mu.Unlock()
		return s.memory, nil // nothing more comes, in whose stead it would go
	}
	size := s.end()
	s.mu.Unlock()
	content := make([]byte, size)
	_, err := io.ReadFull(io.NewSectionReader(s, 0, size), content)
	return content, err
}

func (s *store) end() int64 { return s.base + int64(len(s.memory)) + s.inFile }

// state gives the end of the stream so far, and whether it is the last.
func (s *store) state() (end int64, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(), s.closed
}

// append takes bytes, and waits for the reader where there is no room. False: the store is released, or the wait was given up.
func (s *store) append(p []byte, giveUp <-chan struct{}) bool {
	for len(p) > 0 {
		s.mu.Lock()
		if s.gone || s.closed {
			s.mu.Unlock()
			return false
		}
		n := s.take(p)
		if n > 0 {
			s.tell()
		}
		room := s.room
		s.waiting = n == 0
		s.mu.Unlock()
		p = p[n:]
		if n > 0 || len(p) == 0 {
			continue
		}
		select {
		case <-room:
		case <-giveUp:
			return false
		}
	}
	return true
}

// arrived gives a channel that closes when more, or the end, has come; the lock is held.
func (s *store) arrived() <-chan struct{} {
	if s.news == nil {
		s.news = make(chan struct{})
	}
	return s.news
}

func (s *store) tell() {
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}

// take stores what there is room for.
func (s *store) take(p []byte) int {
	if s.inFile == 0 {
		if n := min(len(p), memoryBytes-len(s.memory)); n > 0 {
			s.memory = append(s.memory, p[:n]...)
			return n
		}
	}
	if n := s.takeToFile(p); n > 0 {
		return n
	}
	if s.inFile == 0 {
		if n := min(len(p), s.need-len(s.memory)); n > 0 {
			s.memory = append(s.memory, p[:n]...)
			return n
		}
	}
	if s.read < s.end() && !s.unread || s.end() == s.base {
		return 0
	}
	// Full, and all of it has been read or never will be: begin anew rather than grow.
	s.base = s.end()
	s.memory = s.memory[:0]
	s.inFile, s.checked = 0, 0
	if s.file != nil {
		_ = s.file.Truncate(0)
	}
	return s.take(p)
}

func (s *store) takeToFile(p []byte) int {
	p = p[:min(int64(len(p)), s.bound-s.inFile)]
	if len(p) == 0 || !s.spare() {
		return 0
	}
	if s.file == nil {
		file, err := anonymousFile(s.folder)
		if err != nil {
			return 0
		}
		s.file = file
	}
	n, _ := s.file.WriteAt(p, s.inFile)
	s.inFile += int64(n)
	return n
}

// spare tells whether the disk has room to spare.
func (s *store) spare() bool {
	if s.file != nil && s.inFile-s.checked < checkBytes {
		return true
	}
	free, err := host.FreeBytes(s.folder)
	if err != nil || free < spareBytes {
		return false
	}
	s.checked = s.inFile
	return true
}

// full tells whether bytes wait for room.
func (s *store) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// received notes that the reader has everything before this offset: it asks for what follows.
func (s *store) received(offset int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset > s.read && offset <= s.end() {
		s.read = offset
		if s.read == s.end() {
			// A full store begins anew at the next append.
			close(s.room)
			s.room = make(chan struct{})
		}
	}
}

// setUnread says whether nobody reads any more.
func (s *store) setUnread(unread bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unread = unread
	close(s.room) // who waits for room looks again
	s.room = make(chan struct{})
}

// ReadAt reads at an offset of the stream; io.EOF where it ends for now.
func (s *store) ReadAt(p []byte, offset int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset < s.base || s.gone {
		return 0, errNotKept
	}
	at := offset - s.base
	if at < int64(len(s.memory)) {
		return copy(p, s.memory[at:]), nil
	}
	at -= int64(len(s.memory))
	if at >= s.inFile {
		return 0, io.EOF
	}
	return s.file.ReadAt(p[:min(int64(len(p)), s.inFile-at)], at)
}

// copyTo writes the bytes from one offset up to another.
func (s *store) copyTo(to io.Writer, from, end int64) error {
	buffer := make([]byte, min(end-from, 64<<10))
	for from < end {
		n, err := s.ReadAt(buffer[:min(int64(len(buffer)), end-from)], from)
		if n == 0 && err != nil {
			return err
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// close says that no more will come.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.tell()
		close(s.room)
		s.room = make(chan struct{})
	}
}

// release forgets everything.
func (s *store) release() {
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.memory = nil
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// fill appends all that a reader gives.
func (s *store) fill(giveUp <-chan struct{}, from io.Reader) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !s.append(buffer[:n], giveUp) {
			return errNoRoom
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
