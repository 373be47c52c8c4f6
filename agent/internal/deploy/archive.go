// This file puts back what of a module's archive did not come with it.

package deploy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strconv"
	"strings"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/process"
)

const (
	// maximumBefore bounds what comes before an archive: it is held in memory.
	maximumBefore = 1 << 20
	// maximumParts and maximumPart bound the parts of an archive, and what is said of each, in bytes.
	maximumParts = 4096
	maximumPart  = 96
	// maximumNames bounds those that are looked for.
	maximumNames = 64
)

// withArchive puts a module's archive, which came with another, or whose parts did, back into its program; it gives that as well.
func (d *Deployment) withArchive(input io.Reader, archive string, offset int64, parts *string) (io.Reader, process.Archive, error) {
	var none process.Archive
	if input == nil || offset < 0 {
		return nil, none, badRequest("an Archive must have an Input, and no negative ArchiveOffset")
	}
	if parts == nil {
		text, err := d.keptArchive(archive)
		if err != nil {
			return nil, none, err
		}
		return io.MultiReader(io.LimitReader(input, offset), bytes.NewReader(text), input), process.Archive{Hash: archive, Text: text}, nil
	}
	if offset > maximumBefore {
		return nil, none, badRequest("ArchiveOffset is beyond " + strconv.Itoa(maximumBefore) + " with ArchiveParts")
	}
	before := make([]byte, offset)
	if _, err := io.ReadFull(input, before); err != nil {
		return nil, none, shortInput(err)
	}
	text, err := d.archiveOf(input, archive, *parts)
	if err != nil {
		return nil, none, err
	}
	d.processes.KeepArchive(text)
	return io.MultiReader(bytes.NewReader(before), bytes.NewReader(text), input), process.Archive{Hash: archive, Text: text}, nil
}

// keepArchive takes an archive whose module is yet to come.
func (d *Deployment) keepArchive(c *call, r *KeepArchive) (*KeepArchiveResponse, error) {
	data := io.Reader(bytes.NewReader(nil))
	if r.Data != nil {
		var err error
		if data, err = c.open(*r.Data); err != nil {
			return nil, err
		}
	}
	text, err := d.archiveOf(data, r.Archive, r.ArchiveParts)
	if err != nil {
		return nil, err
	}
	if more, _ := io.CopyN(io.Discard, data, 1); more > 0 {
		return nil, badRequest("Data has more than ArchiveParts say")
	}
	d.processes.PrepareArchive(text)
	return &KeepArchiveResponse{}, nil
}

// prepareInterpreter has an interpreter ready for modules that are yet to come.
func (d *Deployment) prepareInterpreter(c *call, r *PrepareInterpreter) (*PrepareInterpreterResponse, error) {
	beginning, err := c.bytes(r.Beginning, maximumBefore)
	if err != nil {
		return nil, err
	}
	if len(r.Interpreter) > maximumNames {
		return nil, badRequest("Interpreter has more than " + strconv.Itoa(maximumNames) + " names")
	}
	request := &process.Request{CommandLine: r.CommandLine, User: given(r.User)}
	for _, v := range r.Environment {
		request.Environment = append(request.Environment, process.Variable(v))
	}
	d.processes.PrepareInterpreter(request, r.Interpreter, beginning)
	return &PrepareInterpreterResponse{}, nil
}

// archiveOf gives the text of an archive, by its hash, that comes in parts.
func (d *Deployment) archiveOf(now io.Reader, hash, parts string) ([]byte, error) {
	text, err := d.composed(now, parts)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != hash {
		return nil, badRequest("ArchiveParts are not those of the Archive")
	}
	return text, nil
}

// keptArchive gives the text of an archive that came before, by its hash; SD-713: it is not here.
func (d *Deployment) keptArchive(hash string) ([]byte, error) {
	if text := d.processes.Archive(hash); text != nil {
		return text, nil
	}
	return nil, catalogue.New("SD-713", "archive", hash[:min(len(hash), 64)])
}

// composed gives the text, in base64, of an archive from its parts: of archives that came before, and of what comes now.
func (d *Deployment) composed(now io.Reader, parts string) ([]byte, error) {
	used := make(map[string][]byte)
	var all []byte
	if len(parts) > maximumParts*maximumPart {
		return nil, badRequest("ArchiveParts is too long")
	}
	count := 0
	for field := range strings.FieldsSeq(parts) {
		if count++; count > maximumParts {
			return nil, badRequest("ArchiveParts has more than " + strconv.Itoa(maximumParts) + " parts")
		}
		size, of, isOld := strings.Cut(field, ":")
		n, err := strconv.ParseUint(size, 10, 20)
		if err != nil || base64.StdEncoding.EncodedLen(len(all)+int(n)) > process.MaximumArchive {
			return nil, badRequest("ArchiveParts: a size is none, or the whole is beyond " + strconv.Itoa(process.MaximumArchive) + " characters of base64")
		}
		if !isOld {
			all = append(all, make([]byte, n)...)
			if _, err := io.ReadFull(now, all[len(all)-int(n):]); err != nil {
				return nil, shortInput(err)
			}
			continue
		}
		hash, at, _ := strings.Cut(of, ":")
		old := used[hash]
		if old == nil {
			if old, err = d.keptArchive(hash); err != nil {
				return nil, err
			}
			used[hash] = old
			d.processes.KeepArchive(old) // used, and so kept for longer
		}
		begin, err := strconv.ParseUint(at, 10, 20)
		if err == nil {
			all, err = appendDecoded(all, old, int(begin), int(n))
		}
		if err != nil {
			return nil, badRequest("ArchiveParts: a part is not within the archive that it is of")
		}
	}
	return base64.StdEncoding.AppendEncode(nil, all), nil
}

// appendDecoded adds n of the bytes, from begin on, that a text in base64 stands for.
func appendDecoded(to, text []byte, begin, n int) ([]byte, error) {
	first, last := begin/3*4, (begin+n+2)/3*4
	if last > len(text) {
		return to, io.ErrUnexpectedEOF
	}
	decoded := make([]byte, base64.StdEncoding.DecodedLen(last-first))
	there, err := base64.StdEncoding.Decode(decoded, text[first:last])
	if from := begin % 3; err == nil && from+n <= there {
		return append(to, decoded[from:from+n]...), nil
	}
	return to, io.ErrUnexpectedEOF
}

// shortInput says what kept a part from being read.
func shortInput(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return badRequest("less came than ArchiveParts say")
	}
	return badRequest("what comes of the archive: " + err.Error())
}
