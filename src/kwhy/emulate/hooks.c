/* What the emulator tells about a run, written down at C speed. The same facts as PythonHooks in
 * hooks.py gathers, which see; struct log mirrors its ctypes structure field for field. */
#include <stdint.h>
#include <string.h>

typedef struct uc_struct uc_engine;

struct block { uint64_t address, size; };
struct access { uint64_t step, place, value, size, write; };
struct log {
	uint64_t limit, max_steps, max_accesses;
	uint64_t n_blocks, n_steps, n_accesses, full;
	struct block *blocks;
	uint64_t *steps, *entry_steps, *entry_registers;
	struct access *accesses;
	const uint8_t *host;
	int (*stop)(uc_engine *);
	int (*read_registers)(uc_engine *, int *, void **, int);
	int *register_ids;
	uint64_t n_registers, detail;
};

#define MAX_REGISTERS 32
enum { MEM_WRITE = 17 };  /* UC_MEM_WRITE */

static void fill_up(uc_engine *uc, struct log *log)
{
	log->full = 1;
	log->stop(uc);
}

void on_block(uc_engine *uc, uint64_t address, uint32_t size, void *data)
{
	struct log *log = data;

	if (log->n_blocks >= log->limit)
		return fill_up(uc, log);
	if (log->detail) {
		uint64_t *row = log->entry_registers + log->n_blocks * log->n_registers;
		void *rows[MAX_REGISTERS];

		for (uint64_t i = 0; i < log->n_registers && i < MAX_REGISTERS; i++)
			rows[i] = row + i;
		log->entry_steps[log->n_blocks] = log->n_steps;
		log->read_registers(uc, log->register_ids, rows, (int)log->n_registers);
	}
	log->blocks[log->n_blocks].address = address;
	log->blocks[log->n_blocks].size = size;
	if (++log->n_blocks >= log->limit)
		fill_up(uc, log);
}

void on_step(uc_engine *uc, uint64_t address, uint32_t size, void *data)
{
	struct log *log = data;

	(void)size;
	if (log->n_steps >= log->max_steps)
		return fill_up(uc, log);
	log->steps[log->n_steps++] = address;
}

void on_access(uc_engine *uc, int kind, uint64_t place, int size, int64_t value, void *data)
{
	struct log *log = data;
	struct access *access;

	if (log->n_accesses >= log->max_accesses)
		return fill_up(uc, log);
	access = &log->accesses[log->n_accesses++];
	access->step = log->n_steps - 1;
	access->place = place;
	access->size = (uint64_t)size;
	access->write = kind == MEM_WRITE;
	access->value = (uint64_t)value;
	if (kind != MEM_WRITE) {
		access->value = 0;
		memcpy(&access->value, log->host + place, size > 8 ? 8 : (size_t)size);
	}
}
