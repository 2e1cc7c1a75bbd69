package main

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/zdsapi"
)

// One message of the node agent, and the network namespace that came with it.
type received struct {
	Message json.RawMessage `json:"message"`
	Netns   uint64          `json:"netns,omitempty"`
}

// playZtunnel says hello and acknowledges whatever comes, until the agent hangs up.
func playZtunnel(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := send(fd, &zdsapi.ZdsHello{Version: zdsapi.Version_V1}); err != nil {
		return err
	}
	lines := json.NewEncoder(os.Stdout)
	for {
		message, err := receive(fd)
		if err != nil || message == nil {
			return err
		}
		if err := lines.Encode(message); err != nil {
			return err
		}
		ack := &zdsapi.WorkloadResponse{
			Payload: &zdsapi.WorkloadResponse_Ack{Ack: &zdsapi.Ack{}},
		}
		if err := send(fd, ack); err != nil {
			return err
		}
	}
}

func send(fd int, message proto.Message) error {
	data, err := proto.Marshal(message)
	if err != nil {
		return err
	}
	return unix.Sendmsg(fd, data, nil, nil, 0)
}

// receive gives nil where the agent has hung up.
func receive(fd int) (*received, error) {
	data, rights := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	size, rightsSize, _, _, err := unix.Recvmsg(fd, data, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil || size == 0 {
		return nil, err
	}
	request := &zdsapi.WorkloadRequest{}
	if err := proto.Unmarshal(data[:size], request); err != nil {
		return nil, err
	}
	text, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	inode, err := inodeOf(rights[:rightsSize])
	return &received{Message: text, Netns: inode}, err
}

func inodeOf(rights []byte) (uint64, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return 0, err
	}
	descriptors, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	var status unix.Stat_t
	for _, descriptor := range descriptors {
		defer unix.Close(descriptor)
		if err := unix.Fstat(descriptor, &status); err != nil {
			return 0, err
		}
	}
	return status.Ino, nil
}
