/* A V4L2 camera without hardware, for LD_PRELOAD: the file named by FAKE_VIDEO answers as a capture node.
 *
 * It offers YUYV, GREY, Y16, Z16 and MJPG in 64 x 48 and 32 x 24 at 30 or 15 frames per second. Pixel (row, column) of
 * frame n is row * 256 + column + n in 16-bit formats and (row + column + n) modulo 256 in 8-bit ones; the chroma of
 * YUYV is 128. MJPG frames are the file named by FAKE_JPEG. After FAKE_HANGS_AFTER frames it never answers again; with
 * its file removed it is unplugged. Everything but the kernel is real: OpenCV opens, asks, maps and reads as from any
 * node. Source of the layouts: linux/videodev2.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BUFFERS = 4, LARGEST = 65536 };

static int node = -1;
static unsigned format = V4L2_PIX_FMT_YUYV, width = 64, height = 48, rate = 30, frame;
static unsigned char *memory[BUFFERS];
static unsigned queue[BUFFERS], queued;

static const unsigned formats[] = {V4L2_PIX_FMT_YUYV, V4L2_PIX_FMT_GREY, V4L2_PIX_FMT_Y16, V4L2_PIX_FMT_Z16,
                                   V4L2_PIX_FMT_MJPEG};

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*next)(const char *, int, ...);
    if (!next) next = dlsym(RTLD_NEXT, "open");
    return next(path, flags, mode);
}

static int opened(const char *path, int flags, mode_t mode) {
    const char *fake = getenv("FAKE_VIDEO");
    if (!fake || strcmp(path, fake)) return real_open(path, flags, mode);
    format = V4L2_PIX_FMT_YUYV, width = 64, height = 48, rate = 30, queued = 0;
    return node = eventfd(1, EFD_CLOEXEC); /* readable for ever: a frame is always due */
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return opened(path, flags, mode);
}

int close(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "close");
    if (fd == node) node = -1;
    return next(fd);
}

static unsigned bytes_per_pixel(void) { return format == V4L2_PIX_FMT_GREY ? 1 : 2; }

static int known(unsigned wanted) {
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i] == wanted) return 1;
    return 0;
}

static void describe(struct v4l2_pix_format *pix) {
    pix->width = width, pix->height = height, pix->pixelformat = format, pix->field = V4L2_FIELD_NONE;
    pix->bytesperline = format == V4L2_PIX_FMT_MJPEG ? 0 : width * bytes_per_pixel();
    pix->sizeimage = format == V4L2_PIX_FMT_MJPEG ? LARGEST : pix->bytesperline * height;
}

static void set_format(struct v4l2_pix_format *pix) {
    if (known(pix->pixelformat)) format = pix->pixelformat;
    width = pix->width <= 32 ? 32 : 64, height = pix->width <= 32 ? 24 : 48;
    describe(pix);
}

static unsigned fill(unsigned char *at) {
    if (format == V4L2_PIX_FMT_MJPEG) {
        FILE *file = fopen(getenv("FAKE_JPEG"), "rb");
        unsigned used = file ? fread(at, 1, LARGEST, file) : 0;
        if (file) fclose(file);
        return used;
    }
    for (unsigned row = 0; row < height; row++)
        for (unsigned column = 0; column < width; column++) {
            unsigned pixel = row * width + column, value = row + column + frame;
            if (format == V4L2_PIX_FMT_GREY) at[pixel] = value;
            else if (format == V4L2_PIX_FMT_YUYV) at[2 * pixel] = value, at[2 * pixel + 1] = 128;
            else value = row * 256 + column + frame, at[2 * pixel] = value, at[2 * pixel + 1] = value >> 8;
        }
    return width * height * bytes_per_pixel();
}

static int give(struct v4l2_buffer *buffer) {
    const char *last = getenv("FAKE_HANGS_AFTER");
    if (last && frame >= (unsigned)atoi(last)) pause();
    if (access(getenv("FAKE_VIDEO"), F_OK)) return errno = ENODEV, -1;
    if (!queued) return errno = EAGAIN, -1;
    usleep(1000000 / rate);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    buffer->index = queue[0];
    memmove(queue, queue + 1, --queued * sizeof *queue);
    buffer->bytesused = fill(memory[buffer->index]);
    buffer->length = LARGEST, buffer->sequence = ++frame, buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
    buffer->timestamp.tv_sec = now.tv_sec, buffer->timestamp.tv_usec = now.tv_nsec / 1000;
    return 0;
}

static int answer(unsigned long request, void *argument) {
    struct v4l2_capability *capability = argument;
    struct v4l2_buffer *buffer = argument;
    struct v4l2_fmtdesc *description = argument;
    struct v4l2_streamparm *timing = argument;
    switch (request) {
    case VIDIOC_QUERYCAP:
        memset(capability, 0, sizeof *capability);
        strcpy((char *)capability->card, "Fake Camera");
        capability->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        capability->capabilities = capability->device_caps | V4L2_CAP_DEVICE_CAPS;
        return 0;
    case VIDIOC_ENUM_FMT:
        if (description->index >= sizeof formats / sizeof *formats) break;
        description->pixelformat = formats[description->index];
        return 0;
    case VIDIOC_G_FMT: describe(&((struct v4l2_format *)argument)->fmt.pix); return 0;
    case VIDIOC_TRY_FMT:
    case VIDIOC_S_FMT: set_format(&((struct v4l2_format *)argument)->fmt.pix); return 0;
    case VIDIOC_S_PARM:
        if (timing->parm.capture.timeperframe.numerator)
            rate = timing->parm.capture.timeperframe.denominator / timing->parm.capture.timeperframe.numerator;
        rate = rate <= 15 ? 15 : 30; /* fall through */
    case VIDIOC_G_PARM:
        timing->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        timing->parm.capture.timeperframe.numerator = 1, timing->parm.capture.timeperframe.denominator = rate;
        return 0;
    case VIDIOC_REQBUFS: {
        struct v4l2_requestbuffers *wanted = argument;
        if (wanted->count > BUFFERS) wanted->count = BUFFERS;
        queued = 0;
        return 0;
    }
    case VIDIOC_QUERYBUF: buffer->length = LARGEST, buffer->m.offset = buffer->index * LARGEST; return 0;
    case VIDIOC_QBUF: queue[queued++ % BUFFERS] = buffer->index; return 0;
    case VIDIOC_DQBUF: return give(buffer);
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF: return 0;
    }
    return errno = EINVAL, -1;
}

int ioctl(int fd, unsigned long request, ...) {
    static int (*next)(int, unsigned long, ...);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (!next) next = dlsym(RTLD_NEXT, "ioctl");
    return fd >= 0 && fd == node ? answer((unsigned)request, argument) : next(fd, request, argument);
}

static void *mapped(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next) next = dlsym(RTLD_NEXT, "mmap");
    if (fd < 0 || fd != node) return next(at, size, protection, flags, fd, offset);
    /* A program maps what it only reads; the camera writes there. */
    return memory[offset / LARGEST] = next(at, size, protection | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapped(at, size, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapped(at, size, protection, flags, fd, offset);
}
