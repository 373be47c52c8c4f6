package files

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/account"
	"sojourn.example/agent/internal/catalogue"
)

func wantCode(t *testing.T, code string, err error) {
	t.Helper()
	if known, ok := errors.AsType[*catalogue.Error](err); !ok || known.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

// put sends the file from the offset on.
func put(s *Store, path, content string, offset int64, change func(*Put)) error {
	sum := sha256.Sum256([]byte(content))
	r := &Put{
		Path: path, Offset: offset, TotalSize: int64(len(content)), Data: strings.NewReader(content[offset:]),
		Checksum: func() ([]byte, error) { return sum[:], nil },
	}
	if change != nil {
		change(r)
	}
	got, err := s.Put(r)
	if err == nil && got != sum {
		return errors.New("the wrong checksum was computed")
	}
	return err
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(raw)
}

func TestPut(t *testing.T) {
	unix.Umask(0o022)
	folder := t.TempDir()
	s := NewStore(folder)
	if err := put(s, "new/folder/a", "one", 0, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "new/folder/a")
	if info, _ := os.Stat(path); read(t, path) != "one" || info.Mode() != 0o600 {
		t.Error(read(t, path), info.Mode())
	}
	if err := put(s, path, "two", 0, func(p *Put) { p.Mode = "2755" }); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); read(t, path) != "two" || info.Mode() != 0o755|os.ModeSetgid {
		t.Error(read(t, path), info.Mode())
	}
	if err := put(s, "empty", "", 0, nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "SD-706", put(s, filepath.Join(t.TempDir(), "no/folder/a"), "x", 0, nil))
	wantCode(t, "SD-706", put(s, "../a", "x", 0, nil))
	wantCode(t, "SD-706", put(s, "new/folder", "x", 0, nil))
	wantCode(t, "SD-504", put(s, "a", "x", 0, func(p *Put) { p.Offset = -1 }))
	wantCode(t, "SD-504", put(s, "a", "x", 0, func(p *Put) { p.Mode = "9" }))
	wantCode(t, "SD-504", put(s, "a", "x", 0, func(p *Put) { p.TotalSize = 0 }))
	wantCode(t, "SD-702", put(s, "a", "x", 0, func(p *Put) { p.User = "no-such-user" }))
	if left, _ := filepath.Glob(filepath.Join(folder, "*"+PartSuffix)); len(left) != 0 {
		t.Error(left)
	}
}

func TestDamagedTransferKeepsTheOldFile(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	if err := put(s, "a", "old", 0, nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "SD-707", put(s, "a", "new", 0, func(p *Put) { p.Data = strings.NewReader("nex") }))
	wantCode(t, "SD-402", put(s, "a", "new", 0, func(p *Put) { p.TotalSize = math.MaxInt64 }))
	if read(t, filepath.Join(folder, "a")) != "old" || read(t, filepath.Join(folder, "a"+PartSuffix)) != "" {
		t.Error("the old file has changed, or a part was left")
	}
}

// breaking gives some bytes and then fails.
func breaking(text string) io.Reader {
	return io.MultiReader(strings.NewReader(text), brokenPipe{})
}

type brokenPipe struct{}

func (brokenPipe) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestResumeBeforeTheLostTransferHasEnded(t *testing.T) {
	const content, at = "0123456789", 4
	s := NewStore(t.TempDir())
	lost, network := io.Pipe()
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- put(s, "a", content, 0, func(p *Put) { p.Data = lost }) }()
	if _, err := network.Write([]byte(content[:at])); err != nil { // it is at work now
		t.Fatal(err)
	}
	go func() { second <- put(s, "a", content, at, nil) }()
	select {
	case err := <-second:
		t.Fatal("two wrote at once:", err)
	case <-time.After(50 * time.Millisecond):
	}
	network.CloseWithError(io.ErrUnexpectedEOF)
	wantCode(t, "SD-504", <-first)
	if err := <-second; err != nil || read(t, filepath.Join(s.folder, "a")) != content {
		t.Error(err, read(t, filepath.Join(s.folder, "a")))
	}
}

func TestResume(t *testing.T) {
	content := strings.Repeat("0123456789", 100000)
	const at = 300000
	for name, between := range map[string]func(s *Store, part string) *Store{
		"at once":            func(s *Store, _ string) *Store { return s },
		"by another agent":   func(_ *Store, part string) *Store { return NewStore(filepath.Dir(part)) },
		"with more than at":  func(s *Store, part string) *Store { appendTo(part, "garbage"); return s },
		"from further ahead": func(s *Store, _ string) *Store { return s },
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			s := NewStore(folder)
			part := filepath.Join(folder, "a"+PartSuffix)
			wantCode(t, "SD-504", put(s, "a", content, 0, func(p *Put) { p.Data = breaking(content[:at]) }))
			if len(read(t, part)) != at {
				t.Fatalf("the part has %d bytes", len(read(t, part)))
			}
			s = between(s, part)
			offset := int64(at)
			if name == "from further ahead" {
				wantCode(t, "SD-706", put(s, "a", content, at+1, nil))
				offset = at - 7
			}
			if err := put(s, "a", content, offset, nil); err != nil {
				t.Fatal(err)
			}
			if read(t, filepath.Join(folder, "a")) != content {
				t.Error("the file differs")
			}
		})
	}
}

func appendTo(path, text string) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, _ = file.WriteString(text)
		file.Close()
	}
}

func TestEndRemovesParts(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	wantCode(t, "SD-504", put(s, "a", "content", 0, func(p *Put) { p.Data = breaking("con") }))
	s.End()
	if entries, _ := os.ReadDir(folder); len(entries) != 0 {
		t.Error(entries)
	}
}

func TestOnlyOneWritesAFile(t *testing.T) {
	s := NewStore(t.TempDir())
	s.patience = 10 * time.Millisecond
	reader, writer := io.Pipe()
	done := make(chan error)
	go func() { done <- put(s, "a", "content", 0, func(p *Put) { p.Data = reader }) }()
	_, _ = writer.Write([]byte("con"))
	wantCode(t, "SD-706", put(s, "a", "other", 0, nil))
	_, _ = writer.Write([]byte("tent"))
	writer.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPartIsNotWrittenThroughALink(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	victim := filepath.Join(folder, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(folder, "a"+PartSuffix)
	if err := os.Symlink(victim, part); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "SD-706", put(s, "a", "content", 1, nil))
	if err := put(s, "a", "content", 0, nil); err != nil {
		t.Error(err)
	}
	if read(t, victim) != "precious" || read(t, filepath.Join(folder, "a")) != "content" {
		t.Error("the link was followed")
	}
}

func TestGet(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	if err := put(s, "a", "0123456789", 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, -1, "3456789"}, {3, 2, "34"}, {10, -1, ""}, {99, 5, ""}, {8, 5, "89"}, {0, 0, ""}} {
		sent, err := s.Get("a", c.offset, c.length, "")
		if err != nil {
			t.Fatal(err)
		}
		var data, sum bytes.Buffer
		if err := errors.Join(sent.Data(&data), sent.Checksum(&sum)); err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256([]byte(c.want)); data.String() != c.want || sent.Size != 10 || sent.Length != int64(len(c.want)) || sum.String() != string(want[:]) {
			t.Errorf("%+v: %q, %+v", c, data.String(), sent)
		}
	}
	fifo := filepath.Join(folder, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"none", ".", "fifo", "", "a/b"} {
		_, err := s.Get(path, 0, -1, "")
		wantCode(t, "SD-706", err)
	}
	_, err := s.Get("a", -1, -1, "")
	wantCode(t, "SD-504", err)
	if err := put(s, "large", strings.Repeat("x", smallBytes+1), 0, nil); err != nil {
		t.Fatal(err)
	}
	sent, err := s.Get("large", 0, -1, "")
	if err != nil || os.Truncate(filepath.Join(folder, "large"), 5) != nil {
		t.Fatal(err)
	}
	if sent.Data(io.Discard) == nil {
		t.Error("a file that became shorter was sent as whole")
	}
}

// TestGetKernelFiles: they are not as long as they say.
func TestGetKernelFiles(t *testing.T) {
	s := NewStore(t.TempDir())
	for path, says := range map[string]int64{"/proc/version": 0, "/sys/class/net/lo/mtu": int64(os.Getpagesize())} {
		want, err := os.ReadFile(path)
		if info, err := os.Stat(path); err != nil || info.Size() != says || int64(len(want)) == says {
			t.Fatalf("%s: %v, %v", path, info, err)
		}
		sent, errGet := s.Get(path, 0, -1, "")
		if err := errors.Join(err, errGet); err != nil {
			t.Fatal(err)
		}
		var data bytes.Buffer
		if err := sent.Data(&data); err != nil || !bytes.Equal(data.Bytes(), want) || sent.Size != int64(len(want)) {
			t.Errorf("%s: %q, %+v, %v", path, data.Bytes(), sent, err)
		}
	}
	_, err := s.Get("/proc/self/mem", 0, -1, "")
	wantCode(t, "SD-706", err)
}

func TestStat(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	if err := put(s, "a", "abc", 0, func(p *Put) { p.Mode = "640" }); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]string{"a": File, ".": Directory, "link": Link, "none": Absent, "a/b": Absent, "/dev/null": Other} {
		status, err := s.Stat(path, true, "")
		if err != nil || status.Kind != kind || (status.Checksum != nil) != (kind == File) {
			t.Errorf("%s: %+v, %v", path, status, err)
		}
	}
	status, _ := s.Stat("a", false, "")
	if status.Size != 3 || status.Mode != "0640" || status.Owner == "" || status.Modified.IsZero() || status.Checksum != nil {
		t.Errorf("%+v", status)
	}
}

func TestRemove(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	if err := put(s, "deep/er/a", "abc", 0, nil); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(folder, "deep/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Remove("deep", false, "")
	wantCode(t, "SD-706", err)
	if removed, err := s.Remove("deep", true, ""); !removed || err != nil {
		t.Error(removed, err)
	}
	if removed, err := s.Remove("deep", true, ""); removed || err != nil {
		t.Error(removed, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error("a link was followed")
	}
	for _, path := range []string{".", "/", "deep/..", folder} {
		_, err := s.Remove(path, true, "")
		wantCode(t, "SD-706", err)
	}
}

type entry struct {
	name, content string
	mode          os.FileMode
}

func archive(t *testing.T, entries ...entry) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.zip")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := zip.NewWriter(file)
	for _, e := range entries {
		header := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.mode != 0 {
			header.SetMode(e.mode)
		}
		to, err := w.CreateHeader(header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(to, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExtract(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	path := archive(t, entry{"folder/", "", 0}, entry{"folder/a.txt", "a", 0o644}, entry{`back\slash.txt`, "b", 0}, entry{"run", "#!", 0o755})
	count, err := s.Extract(path, "new/out")
	if err != nil || count != 3 {
		t.Fatal(count, err)
	}
	out := filepath.Join(folder, "new/out")
	if read(t, out+"/folder/a.txt") != "a" || read(t, out+"/back/slash.txt") != "b" {
		t.Error("the contents differ")
	}
	if info, _ := os.Stat(out + "/run"); info.Mode() != 0o700 {
		t.Error(info.Mode())
	}
	_, err = s.Extract(path, "new/out")
	wantCode(t, "SD-706", err) // it is there already
}

func TestUnsafeArchives(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder)
	noArchive := filepath.Join(folder, "no.zip")
	if err := os.WriteFile(noArchive, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := entry{"good", "good", 0}
	for name, path := range map[string]string{
		"no archive":    noArchive,
		"parent":        archive(t, good, entry{"../evil", "x", 0}),
		"hidden parent": archive(t, good, entry{"a/../../evil", "x", 0}),
		"absolute":      archive(t, good, entry{"/tmp/evil", "x", 0}),
		"backslash":     archive(t, good, entry{`..\evil`, "x", 0}),
		"link":          archive(t, good, entry{"link", "/etc", 0o777 | os.ModeSymlink}),
		"no name":       archive(t, good, entry{"/", "", 0}),
		"damaged":       damaged(t, archive(t, good, entry{"large", strings.Repeat("0123456789", 1000), 0})),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Extract(path, "out")
			wantCode(t, "SD-708", err)
			if entries, _ := os.ReadDir(folder); len(entries) != 1 {
				t.Error("something was unpacked", entries)
			}
		})
	}
	_, err := s.Extract(archive(t, good, entry{"good", "again", 0}), "out")
	wantCode(t, "SD-706", err)
	if _, err := os.Stat(filepath.Join(folder, "out")); err == nil {
		t.Error("an entry was unpacked twice")
	}
}

// damaged changes a byte in the middle of the archive's data.
func damaged(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[bytes.Index(raw, []byte("large"))+40] ^= 0xff
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRelativePaths(t *testing.T) {
	s := NewStore("/agent")
	user := &account.Account{Home: "/home/user"}
	for _, c := range []struct {
		path string
		who  *account.Account
		want string
	}{
		{"a/b", nil, "/agent/a/b"},
		{"a/b", user, "/home/user/a/b"},
		{"./a", user, "/home/user/a"},
		{"../a", user, "/home/a"}, // with the user's own rights
		{"/a/../b", user, "/b"},
	} {
		if got, err := s.resolveFor(c.path, c.who); err != nil || got != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.path, got, err, c.want)
		}
	}
	for path, who := range map[string]*account.Account{"../a": nil, "": user} {
		_, err := s.resolveFor(path, who)
		wantCode(t, "SD-706", err)
	}
}

func TestWithTheRightsOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root may lend another user's rights")
	}
	folder := t.TempDir()
	// The way to it must be open for nobody; only the folder 'theirs' is writable.
	for at := folder; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	theirs := filepath.Join(folder, "theirs")
	if err := errors.Join(os.Mkdir(theirs, 0o700), os.Chown(theirs, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	s := NewStore(filepath.Join(folder, "agent"))
	as := func(p *Put) { p.User = "nobody" }
	if err := put(s, filepath.Join(theirs, "a"), "content", 0, as); err != nil {
		t.Fatal(err)
	}
	status, err := s.Stat(filepath.Join(theirs, "a"), true, "nobody")
	if err != nil || status.Owner != "nobody" {
		t.Error(status, err)
	}
	wantCode(t, "SD-706", put(s, filepath.Join(folder, "a"), "content", 0, as))
	secret := filepath.Join(folder, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(secret, 0, -1, "nobody")
	wantCode(t, "SD-706", err)
	_, err = s.Remove(secret, false, "nobody")
	wantCode(t, "SD-706", err)
	// The rights were lent for the work alone.
	if _, err := s.Get(secret, 0, -1, ""); err != nil {
		t.Error(err)
	}
}
