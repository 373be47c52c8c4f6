// This file unpacks a .zip file into a new folder, or leaves nothing where an entry would land outside.

package files

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/host"
)

const (
	maximumEntries   = 100000
	maximumDirectory = 16 << 20 // bytes of what lists them
)

var (
	errTooMany = errors.New("it has more than " + strconv.Itoa(maximumEntries) + " entries")
	errTooLong = errors.New("the list of its entries is too long")

	entryMark = []byte("PK\x01\x02")
)

// listing bounds what zip.NewReader reads: it holds the whole list before anybody can count.
type listing struct {
	io.ReaderAt
	left, entries int // the entries that stand where it looks twice count twice
	read          bool
}

func (l *listing) ReadAt(p []byte, at int64) (int, error) {
	n, err := l.ReaderAt.ReadAt(p, at)
	if l.read {
		return n, err
	}
	l.left -= n
	l.entries += bytes.Count(p[:n], entryMark)
	switch {
	case l.entries > maximumEntries+maximumEntries/10:
		return 0, errTooMany
	case l.left < 0:
		return 0, errTooLong
	}
	return n, err
}

// Extract unpacks the archive and gives the number of files. The folder must not be there yet.
func (s *Store) Extract(archive, folder string) (count int64, err error) {
	if archive, err = s.Resolve(archive); err != nil {
		return 0, err
	}
	if folder, err = s.Resolve(folder); err != nil {
		return 0, err
	}
	unsafe := func(detail string) error {
		return catalogue.New("SD-708", "path", archive, "detail", detail)
	}
	file, err := openToRead(archive)
	if err != nil {
		return 0, fault(archive, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, fault(archive, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fault(archive, errors.New("it is not a file"))
	}
	list := &listing{ReaderAt: file, left: maximumDirectory}
	reader, err := zip.NewReader(list, info.Size())
	if err != nil {
		return 0, unsafe(err.Error())
	}
	list.read = true
	if len(reader.File) > maximumEntries {
		return 0, unsafe(errTooMany.Error())
	}
	var total uint64
	for _, entry := range reader.File {
		if _, err := entryPath(entry); err != nil {
			return 0, unsafe("the entry '" + entry.Name + "' " + err.Error())
		}
		if total += entry.UncompressedSize64; total > 1<<62 {
			return 0, unsafe("it is too large")
		}
	}
	if s.inside(folder) {
		if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
			return 0, fault(folder, err)
		}
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return 0, fault(folder, err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(folder)
		}
	}()
	free, err := host.FreeBytes(folder)
	if err != nil {
		return 0, fault(folder, err)
	}
	if total > uint64(free) {
		return 0, catalogue.New("SD-402", "what", "'"+folder+"'", "detail",
			strconv.FormatUint(total, 10)+" bytes are needed, "+strconv.FormatInt(free, 10)+" are free")
	}
	for _, entry := range reader.File {
		relative, _ := entryPath(entry)
		path := filepath.Join(folder, relative)
		if entry.FileInfo().IsDir() || strings.HasSuffix(entry.Name, `\`) {
			if err := os.MkdirAll(path, 0o700); err != nil {
				return 0, fault(path, err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return 0, fault(path, err)
		}
		if err := extractFile(entry, path); err != nil {
			if isDamage(err) {
				return 0, unsafe("the entry '" + entry.Name + "' is damaged: " + err.Error())
			}
			return 0, fault(path, err)
		}
		count++
	}
	return count, nil
}

func isDamage(err error) bool {
	_, corrupt := errors.AsType[flate.CorruptInputError](err)
	return corrupt || errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrAlgorithm) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// entryPath gives where an entry belongs below the folder.
func entryPath(entry *zip.File) (string, error) {
	// Archives made by old Windows tools have backslashes.
	name := strings.ReplaceAll(entry.Name, `\`, "/")
	if mode := entry.Mode(); mode&fs.ModeType&^fs.ModeDir != 0 {
		return "", errors.New("is neither file nor folder")
	}
	if entry.Flags&1 != 0 {
		return "", errors.New("is encrypted")
	}
	trimmed := strings.TrimRight(name, "/")
	if trimmed == "" || strings.ContainsRune(name, 0) || !filepath.IsLocal(filepath.FromSlash(trimmed)) {
		return "", errors.New("would land outside")
	}
	return filepath.FromSlash(trimmed), nil
}

func extractFile(entry *zip.File, path string) error {
	from, err := entry.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := create(path)
	if err != nil {
		return err
	}
	defer to.Close()
	buffer := buffers.Get().(*[copyBytes]byte)
	defer buffers.Put(buffer)
	// One byte more than announced is a lie of the archive, and would get past the check of the free space.
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, io.LimitReader(from, int64(entry.UncompressedSize64)+1), buffer[:])
	if err != nil {
		return err
	}
	if n != int64(entry.UncompressedSize64) {
		return zip.ErrFormat
	}
	if err := setMode(to, 0o600|entry.Mode()&0o100); err != nil { // what was executable stays so
		return err
	}
	return to.Close()
}
